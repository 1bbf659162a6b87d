// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
)

// notePrefix begins a line that a package may write outside of its tests without having failed there.
const notePrefix = "note: "

// suspect is a test that may be asked a second time.
type suspect struct{ pkg, test string }

// alone gives the tests that failed, by their packages, when nothing but them did, and no more than most. A package
// that did not build, did not come to the end of its tests, or found something outside of them has failed for good.
func (f failures) alone(most int) []suspect {
	var tests []suspect
	for _, l := range f {
		if l.test == "" && !l.testsOnly() {
			return nil
		}
		if l.test != "" && !strings.Contains(l.test, "/") {
			tests = append(tests, suspect{l.pkg, l.test})
		}
	}
	for _, l := range f {
		if l.test == "" && !slices.ContainsFunc(tests, func(s suspect) bool { return s.pkg == l.pkg }) {
			return nil
		}
	}
	if len(tests) > most {
		return nil
	}
	return tests
}

// testsOnly tells of a package's own log that all of its tests have ended and nothing else is wrong: after the last
// test, package testing writes "FAIL" by itself; a panic, a timeout or an exit comes without it.
func (l *log) testsOnly() bool {
	ended := false
	for line := range strings.Lines(strings.Join(l.lines, "")) {
		switch line = strings.TrimRight(line, "\n"); {
		case line == "FAIL":
			ended = true
		case line != "" && !frame.MatchString(line) && !strings.HasPrefix(line, notePrefix):
			return false
		}
	}
	return ended
}

// second asks the tests again, each package's by themselves, and says all that failed at the end.
func (a asker) second(first failures, tests []suspect) (code int, err error) {
	names := map[string][]string{}
	var pkgs []string
	fmt.Fprintln(a.out)
	for _, t := range tests {
		if names[t.pkg] == nil {
			pkgs = append(pkgs, t.pkg)
		}
		names[t.pkg] = append(names[t.pkg], t.test)
		fmt.Fprintf(a.out, "ASKED A SECOND TIME: %s %s\n", t.pkg, t.test)
	}
	var failed failures
	for _, pkg := range pkgs {
		again, c, err := a.ask([]string{"-count=1", "-run", "^(" + strings.Join(names[pkg], "|") + ")$", pkg})
		if err != nil {
			return max(c, 1), err
		}
		failed, code = append(failed, again...), max(code, c)
	}
	first.write(a.out)
	if code == 0 {
		for _, t := range tests {
			fmt.Fprintf(a.out, "UNSTEADY %s %s: it failed and then passed by itself; there is a cause to be found\n", t.pkg, t.test)
		}
		return 0, nil
	}
	fmt.Fprintf(a.out, "\nTHE SECOND TIME")
	failed.write(a.out)
	return code, nil
}
