// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"regexp"
	"strings"
)

const (
	// entryLines is how much is repeated of one word of a test, and of a log that it shows; the rest stands above.
	entryLines = 8
	// testLines is how much is repeated of a test.
	testLines = 60
	// lineBytes is how much is repeated of a line.
	lineBytes = 400
)

// failures are the logs of what failed, in the order of their ends.
type failures []*log

// write repeats them. It says nothing when all is well.
func (f failures) write(out *bufio.Writer) {
	if len(f) == 0 {
		return
	}
	fmt.Fprintf(out, "\nWHAT FAILED, again and in short; the whole log is above\n")
	for _, l := range f {
		lines := l.brief()
		if len(lines) == 0 {
			continue // only its subtests, or its tests, have failed
		}
		name := l.test
		if name == "" {
			name = "outside of its tests"
		}
		fmt.Fprintf(out, "FAILED %s %s (%.2fs)\n", l.pkg, name, l.elapsed)
		for _, line := range lines {
			fmt.Fprintln(out, line)
		}
	}
}

var (
	// entry begins what a test says by t.Log, t.Error and the like; what follows is indented more.
	entry = regexp.MustCompile(`^\s+[\w.-]+\.go:\d+: `)
	// frame is what go test writes around the words of tests.
	frame = regexp.MustCompile(`^\s*(=== |--- |PASS$|FAIL$|FAIL\t|ok  \t|exit status )`)
)

// brief are the lines to repeat.
func (l *log) brief() []string {
	var lines []string
	n, left := 0, 0
	more := func() {
		if left > 0 {
			lines = append(lines, fmt.Sprintf("        … and %d more lines", left))
		}
		n, left = 0, 0
	}
	for line := range strings.Lines(strings.Join(l.lines, "")) {
		line = strings.TrimRight(line, "\n")
		if frame.MatchString(line) || strings.TrimSpace(line) == "" {
			continue
		}
		if entry.MatchString(line) {
			more()
		}
		if n++; n > entryLines && !strings.HasPrefix(line, "panic: ") {
			left++
			continue
		}
		if len(line) > lineBytes {
			line = line[:lineBytes] + "…"
		}
		lines = append(lines, line)
	}
	more()
	if len(lines) > testLines {
		lines = append(lines[:testLines], fmt.Sprintf("    … and %d more lines", len(lines)-testLines))
	}
	return lines
}
