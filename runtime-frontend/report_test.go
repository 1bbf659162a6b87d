// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
)

// TestLogLineIsWhatGoRuncParses decodes as go-runc's getLastRuntimeError does.
func TestLogLineIsWhatGoRuncParses(t *testing.T) {
	h := newHost(t)
	r := h.run("state", "nobody")
	var last struct {
		Level string    `json:"level"`
		Msg   string    `json:"msg"`
		Time  time.Time `json:"time"`
	}
	dec := json.NewDecoder(strings.NewReader(r.log))
	if err := dec.Decode(&last); err != nil {
		t.Fatalf("%q: %v", r.log, err)
	}
	if last.Level != "error" || last.Msg != "container does not exist" || time.Since(last.Time) > time.Minute {
		t.Errorf("%+v", last)
	}
	if dec.More() {
		t.Errorf("more than one line: %q", r.log)
	}
	if !strings.HasSuffix(r.log, "}\n") {
		t.Errorf("no line end: %q", r.log)
	}
}

func TestLogIsAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	stderr, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	r := &reporter{stderr: stderr, path: path}
	r.Error("first \"quoted\"")
	r.json = true
	r.Error("second")
	text, _ := os.ReadFile(path)
	lines := strings.Split(string(text), "\n")
	if len(lines) != 4 || lines[0] != "old" || !strings.Contains(lines[1], `level=error msg="first \"quoted\""`) || !strings.Contains(lines[2], `"msg":"second"`) {
		t.Errorf("%q", text)
	}
}

func TestLogInAMissingDirectoryIsIgnored(t *testing.T) {
	h := newHost(t)
	r := h.runWith([]string{"--log", "/nonexistent/dir/log", "--config", h.config}, "state", "nobody")
	if r.status != 1 || strings.TrimSpace(r.stderr) != "container does not exist" {
		t.Errorf("exit status %d, stderr %q", r.status, r.stderr)
	}
}

func TestOwnFailuresNeverReadLikeTheContainers(t *testing.T) {
	_, missing := os.Open("/nonexistent")
	_, notDir := os.Open("/dev/null/x")
	for _, err := range []error{
		missing, notDir, errors.New("mount: permission denied"), errors.New("Operation not permitted"), errors.New("read /x: is a directory"),
		bus.Errorf(bus.Internal, "local: %w", missing),
		&bus.Error{Reason: bus.Internal, Message: "create vm: open /usr/lib/bulkhead/vmlinux: no such file or directory"}, // a service's
	} {
		text := errorText(fmt.Errorf("doing: %w", err))
		for _, word := range []string{"no such file or directory", "permission denied", "operation not permitted", "is a directory", "not a directory", "executable file not found"} {
			if strings.Contains(strings.ToLower(text), word) {
				t.Errorf("%q would be read as the container's failure (%q)", text, word)
			}
		}
	}
}

func TestWordsOfGuestsPass(t *testing.T) {
	const text = `exec: "x": executable file not found in $PATH`
	said := (&bus.Error{Reason: bus.Internal, Message: text}).With("from", "guest")
	if got := errorText(fmt.Errorf("exec failed: %w", said)); got != "exec failed: "+text {
		t.Errorf("%q", got)
	}
}

func TestAbsentDaemonIsTold(t *testing.T) {
	h := newHost(t)
	config := filepath.Join(t.TempDir(), "bulkhead.toml")
	if err := os.WriteFile(config, []byte("[host]\nrun_dir = \"/nonexistent/run\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"state", "c"}, {"list"}, {"delete", "--force", "c"}, {"kill", "c", "9"}, {"exec", "c", "id"}, {"create", "-b", h.bundle(nil), "c"},
	} {
		status := 1
		if args[0] == "exec" {
			status = 255
		}
		r := h.runWith([]string{"--config", config, "--log-format", "json"}, args...)
		r.fails(t, status, "the bulkhead daemon is not running")
		if strings.Contains(r.stderr, "no such file") || strings.Contains(r.stderr, "does not exist") {
			t.Errorf("%v: %q would be misread", args, r.stderr)
		}
	}
	if len(h.relays) != 0 {
		t.Error("a relay was started without a daemon")
	}
}
