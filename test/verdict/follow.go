// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"strings"
)

// event is a line of "go test -json" (cmd/test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output
	Test       string
	Output     string
	Elapsed    float64
}

// log is what one test, or a package outside of its tests, has written.
type log struct {
	pkg, test string
	lines     []string
	failed    bool
	elapsed   float64
}

// key is what a log belongs to; without a test it is the package's own.
type key struct{ pkg, test string }

// follow shows what go test writes, as it comes, and gathers what failed. Without verbose, a package that passes
// is one line, as go test has it.
func follow(events io.Reader, out *bufio.Writer, verbose bool) (failures, error) {
	f := follower{out: out, verbose: verbose, logs: map[key]*log{}}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if err := f.line(line); err != nil {
				return f.failed, err
			}
		}
		if err == io.EOF {
			return f.failed, nil
		}
		if err != nil {
			return f.failed, err
		}
	}
}

type follower struct {
	out     *bufio.Writer
	verbose bool
	logs    map[key]*log
	order   []*log // of logs, by their first word
	failed  failures
}

func (f *follower) line(line []byte) error {
	var e event
	if !bytes.HasPrefix(line, []byte("{")) || json.Unmarshal(line, &e) != nil {
		_, _ = f.out.Write(line) // not an event: go test's own words
		return f.out.Flush()
	}
	if e.Action == "build-output" {
		e.Package = e.ImportPath
	}
	l := f.log(e)
	switch e.Action {
	case "output", "build-output":
		l.lines = append(l.lines, e.Output)
		if f.verbose {
			_, _ = f.out.WriteString(e.Output)
			return f.out.Flush()
		}
	case "fail", "build-fail":
		l.failed, l.elapsed = true, e.Elapsed
	}
	if e.Test == "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip" || e.Action == "build-fail") {
		return f.end(e.Package)
	}
	return nil
}

func (f *follower) log(e event) *log {
	k := key{e.Package, e.Test}
	l := f.logs[k]
	if l == nil {
		l = &log{pkg: e.Package, test: e.Test}
		f.logs[k] = l
		f.order = append(f.order, l)
	}
	return l
}

// end is that of a package: its logs are shown, if they were not, and those of failures kept.
func (f *follower) end(pkg string) error {
	rest := f.order[:0]
	var own *log
	for _, l := range f.order {
		if l.pkg != pkg {
			rest = append(rest, l)
			continue
		}
		delete(f.logs, key{l.pkg, l.test})
		if l.test == "" {
			own = l // the line of the verdict comes after the tests
		} else if l.failed {
			f.keep(l)
		}
	}
	f.order = rest
	if own.failed {
		f.keep(own)
	} else if !f.verbose {
		f.show(own)
	}
	return f.out.Flush()
}

// keep keeps what failed, and shows it if that was not done as it came.
func (f *follower) keep(l *log) {
	f.failed = append(f.failed, l)
	if !f.verbose {
		f.show(l)
	}
}

func (f *follower) show(l *log) {
	for _, line := range l.lines {
		if !strings.HasPrefix(line, "=== ") && line != "PASS\n" {
			_, _ = f.out.WriteString(line)
		}
	}
}
