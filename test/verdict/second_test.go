// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestOnlyTestsThatFailedAloneMayBeAskedAgain(t *testing.T) {
	ended := &log{pkg: "p", lines: []string{"FAIL\n", "note: logs are kept\n", "FAIL\tp\t1.0s\n"}}
	a, b := &log{pkg: "p", test: "TestA"}, &log{pkg: "p", test: "TestB"}
	sub := &log{pkg: "p", test: "TestA/sub"}
	cases := []struct {
		name   string
		failed failures
		want   []suspect
	}{
		{"one", failures{a, sub, ended}, []suspect{{"p", "TestA"}}},
		{"two", failures{a, b, ended}, []suspect{{"p", "TestA"}, {"p", "TestB"}}},
		{"too many", failures{a, b, &log{pkg: "p", test: "TestC"}, ended}, nil},
		{"a package that did not end its tests", failures{a, &log{pkg: "p", lines: []string{"FAIL\tp\t1.0s\n"}}}, nil},
		{"a package that found more", failures{a, &log{pkg: "p", lines: []string{"FAIL\n", "left on the host: x\n", "FAIL\tp\t1.0s\n"}}}, nil},
		{"another package without a failed test", failures{a, ended, &log{pkg: "q", lines: []string{"FAIL\n", "FAIL\tq\t1.0s\n"}}}, nil},
		{"a package that was not built", failures{a, ended, &log{pkg: "q", lines: []string{"FAIL\tq [build failed]\n"}}}, nil},
	}
	for _, c := range cases {
		if got := c.failed.alone(2); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v instead of %v", c.name, got, c.want)
		}
	}
}

// unsteady is a package of which one test fails the first time, one each time that
// it is told to, and one never.
const unsteady = `package p

import ("os"; "testing")

func TestOnce(t *testing.T) {
	if os.Mkdir("made", 0o700) == nil {
		t.Error("it failed once")
	}
}

func TestEachTime(t *testing.T) {
	if os.Getenv("FAIL_EACH_TIME") != "" {
		t.Error("it failed each time")
	}
}

func TestNever(t *testing.T) {
	f, _ := os.OpenFile("never", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	f.WriteString("x")
}
`

func TestATestThatFailsOnceIsNamedAndOneThatFailsTwiceFails(t *testing.T) {
	for _, each := range []bool{false, true} {
		dir := t.TempDir()
		for name, text := range map[string]string{"go.mod": "module p\n", "p_test.go": unsteady} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		t.Chdir(dir)
		t.Setenv("GOFLAGS", "")
		t.Setenv("FAIL_EACH_TIME", map[bool]string{true: "1"}[each])
		var text strings.Builder
		out := bufio.NewWriter(&text)
		a := asker{out: out}
		failed, code, err := a.ask([]string{"."})
		if err != nil || code != 1 {
			t.Fatalf("the first time: %d, %v", code, err)
		}
		code, err = a.second(failed, failed.alone(3))
		if err != nil || out.Flush() != nil {
			t.Fatal(err)
		}
		if (code != 0) != each {
			t.Errorf("each time %v: it ends with %d", each, code)
		}
		end := "UNSTEADY p TestOnce: it failed and then passed by itself; there is a cause to be found\n"
		if each {
			end = "it failed each time\n"
		}
		if !strings.HasSuffix(text.String(), end) || !strings.Contains(text.String(), "it failed once\n") {
			t.Errorf("each time %v: the log is\n%s", each, text.String())
		}
		if never, _ := os.ReadFile("never"); string(never) != "x" {
			t.Errorf("the test that passed was asked %d times", len(never))
		}
	}
}
