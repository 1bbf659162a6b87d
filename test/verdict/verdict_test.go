// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"strings"
	"testing"
)

// output is a line of a test, as go test -json has it; an action without a text is an end.
func output(test, action, text string) event {
	return event{Action: action, Package: "p", Test: test, Output: text}
}

// hidden are the lines of a log that a test shows.
var hidden = strings.Repeat("        a line of a log\n", 40)

var recorded = []event{
	output("", "start", ""),
	output("TestA", "run", ""),
	output("TestA", "output", "=== RUN   TestA\n"),
	output("TestB", "output", "=== RUN   TestB\n"),
	output("TestA/sub", "output", "    a_test.go:3: it is \"\" instead of \"x\"\n"),
	output("TestA/sub", "output", "        and a second line\n"),
	output("TestA/sub", "output", "    helpers_test.go:9: the end of daemon.log:\n"+hidden),
	output("TestA/sub", "output", "--- FAIL: TestA/sub (6.06s)\n"),
	{Action: "fail", Package: "p", Test: "TestA/sub", Elapsed: 6.06},
	output("TestA", "output", "--- FAIL: TestA (6.06s)\n"),
	{Action: "fail", Package: "p", Test: "TestA", Elapsed: 6.06},
	output("TestB", "output", "    b_test.go:1: a word of a test that passes\n"),
	output("TestB", "output", "--- PASS: TestB (0.00s)\n"),
	output("TestB", "pass", ""),
	output("", "output", "FAIL\n"),
	output("", "output", "something was left on the host\n"),
	output("", "output", "FAIL\tp\t6.070s\n"),
	{Action: "fail", Package: "p", Elapsed: 6.07},
}

const want = `
WHAT FAILED, again and in short; the whole log is above
FAILED p TestA/sub (6.06s)
    a_test.go:3: it is "" instead of "x"
        and a second line
    helpers_test.go:9: the end of daemon.log:
        a line of a log
        a line of a log
        a line of a log
        a line of a log
        a line of a log
        a line of a log
        a line of a log
        … and 33 more lines
FAILED p outside of its tests (6.07s)
something was left on the host
`

func TestWhatFailedIsSaidLast(t *testing.T) {
	for _, verbose := range []bool{true, false} {
		text := played(t, verbose, recorded)
		if !strings.HasSuffix(text, want) {
			t.Errorf("verbose %v: it ends\n%s", verbose, text[strings.Index(text, "\nWHAT"):])
		}
		whole := text[:strings.Index(text, "\nWHAT")]
		if !strings.Contains(whole, hidden) {
			t.Errorf("verbose %v: the log above is not whole:\n%s", verbose, whole)
		}
		if got := strings.Contains(whole, "a word of a test that passes"); got != verbose {
			t.Errorf("verbose %v: the words of a test that passes are shown: %v", verbose, got)
		}
		if !strings.HasSuffix(whole, "FAIL\tp\t6.070s\n") {
			t.Errorf("verbose %v: the log ends %q", verbose, whole[len(whole)-30:])
		}
	}
}

func TestAVerboseLogIsWhatTheTestsWrote(t *testing.T) {
	var all strings.Builder
	for _, e := range recorded {
		all.WriteString(e.Output)
	}
	if text := played(t, true, recorded); text != all.String()+want {
		t.Errorf("it is\n%s", text)
	}
}

func TestNothingIsAddedWhenAllIsWell(t *testing.T) {
	text := played(t, false, []event{
		output("TestB", "output", "    b_test.go:1: a word\n"),
		output("TestB", "pass", ""),
		output("", "output", "PASS\n"),
		output("", "output", "ok  \tp\t0.1s\n"),
		output("", "pass", ""),
	})
	if want := "ok  \tp\t0.1s\n"; text != want {
		t.Errorf("%q instead of %q", text, want)
	}
}

func TestAFailureToBuildIsSaid(t *testing.T) {
	text := played(t, false, []event{
		{Action: "build-output", ImportPath: "p", Output: "a.go:1: undefined: x\n"},
		{Action: "build-fail", ImportPath: "p"},
		output("", "output", "FAIL\tp [build failed]\n"),
		output("", "fail", ""),
	})
	if n := strings.Count(text, "a.go:1: undefined: x\n"); n != 2 || !strings.Contains(text, "FAILED p") {
		t.Errorf("it is %q", text)
	}
}

// played is what is written for recorded events, with what is repeated at the end.
func played(t *testing.T, verbose bool, events []event) string {
	t.Helper()
	var in, out strings.Builder
	for _, e := range events {
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		in.Write(append(line, '\n'))
	}
	w := bufio.NewWriter(&out)
	failed, err := follow(strings.NewReader(in.String()), w, verbose)
	if err != nil {
		t.Fatal(err)
	}
	failed.write(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
