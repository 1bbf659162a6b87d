// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"bulkhead/bus"
)

// reporter tells failures to the caller. An engine reads them on stderr or in the file of --log, and some
// of them understand the file only when it holds the one error and nothing else.
type reporter struct {
	stderr io.Writer
	path   string
	json   bool
	debug  bool
}

func (g *globals) reporter() *reporter {
	return &reporter{stderr: g.std.Err, path: g.log, json: g.logFormat == "json", debug: g.debug}
}

// Error tells the one error of a command, in both places.
func (r *reporter) Error(message string) {
	fmt.Fprintln(r.stderr, message)
	r.append("error", message)
}

// Warn tells what went wrong without failing the command. It stays out of the
// file: podman reads the whole of it as one error.
func (r *reporter) Warn(message string) {
	fmt.Fprintln(r.stderr, "warning: "+message)
	if r.debug {
		r.append("warning", message)
	}
}

// Debug tells what is done, when --debug asks for it: in the file of --log, else on
// stderr.
func (r *reporter) Debug(format string, args ...any) {
	if !r.debug {
		return
	}
	message := fmt.Sprintf(format, args...)
	if r.path == "" {
		_, _ = r.stderr.Write(append(r.text(newLine("debug", message)), '\n')) // as with a file: it must not fail the command
		return
	}
	r.append("debug", message)
}

// line has the keys that go-runc and podman decode.
type line struct {
	Level string `json:"level"`
	Msg   string `json:"msg"`
	Time  string `json:"time"`
}

func newLine(level, message string) line {
	return line{Level: level, Msg: message, Time: time.Now().UTC().Format(time.RFC3339)}
}

// append writes one line with one write, so that concurrent commands do not
// mix. A log that cannot be written must not fail the command.
func (r *reporter) append(level, message string) {
	if r.path == "" {
		return
	}
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.Write(append(r.text(newLine(level, message)), '\n'))
}

// text is a line in the format of --log-format, without its end.
func (r *reporter) text(entry line) []byte {
	if r.json {
		if text, err := json.Marshal(entry); err == nil { // strings always can
			return text
		}
	}
	return fmt.Appendf(nil, "time=%q level=%s msg=%q", entry.Time, entry.Level, entry.Msg)
}

// misread are words by which engines tell that the container's program is
// missing (exit 127) or may not be run (126), and what we say instead when our own work failed.
// From the guest the same words mean just that, and pass.
var misread = strings.NewReplacer(
	"no such file or directory", "the file is missing",
	"No such file or directory", "the file is missing",
	"executable file not found", "program missing",
	"system cannot find the file specified", "file is missing",
	"permission denied", "access refused",
	"Permission denied", "access refused",
	"operation not permitted", "refused by the kernel",
	"Operation not permitted", "refused by the kernel",
	"is a directory", "names a directory",
	"Is a directory", "names a directory",
	"not a directory", "no directory",
	"Not a directory", "no directory",
	"container not found", "container missing",
	"no such process", "process gone",
)

// errorText is the sentence for an error: as it is when a guest has said it, else
// free of words that engines take for the container's own failure. A service fails at
// things of the host as this command does.
func errorText(err error) string {
	text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	var e *bus.Error
	if errors.As(err, &e) && e.Metadata["from"] == "guest" {
		return text
	}
	return misread.Replace(text)
}
