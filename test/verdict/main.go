// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command verdict runs "go test", shows its log as go test does, and repeats at the very end what failed and why: who
// keeps only the tail of a log of thousands of lines, as CI does, has the reason in it.
//
// With -again N, no more than N tests that failed are asked a second time, by themselves. Those that pass then do not
// fail the run, and are named at the end: the engines and kernels that the tests use have races of their own, and a
// run of hundreds of tests is not to be thrown away for one of them; but nobody is to miss it.
//
// It imports nothing of the project, and ends with the code of go test, the second one where there was one.
//
// usage: verdict [-v] [-again N] -- GO TEST FLAG... -- PACKAGE...
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "verdict:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	set := flag.NewFlagSet("verdict", flag.ContinueOnError)
	verbose := set.Bool("v", false, "show the log of tests that pass as well")
	again := set.Int("again", 0, "how many failed tests may be asked a second time")
	if err := set.Parse(args); err != nil {
		return 2, nil // flag has said why
	}
	rest := set.Args()
	end := slices.Index(rest, "--")
	if end < 0 || end == len(rest)-1 {
		return 2, errors.New("usage: verdict [-v] [-again N] -- GO TEST FLAG... -- PACKAGES")
	}
	// A person's ^C goes to go test as well, which ends the tests; its end is waited for, and nothing is asked again.
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	out := bufio.NewWriter(os.Stdout)
	a := asker{flags: rest[:end], verbose: *verbose, out: out}
	failed, code, err := a.ask(rest[end+1:])
	if err != nil || code == 0 {
		return code, errors.Join(err, out.Flush())
	}
	if tests := failed.alone(*again); len(tests) > 0 && interrupted.Err() == nil {
		code, err = a.second(failed, tests)
	} else {
		failed.write(out)
	}
	return code, errors.Join(err, out.Flush())
}

// asker runs go test.
type asker struct {
	flags   []string
	verbose bool
	out     *bufio.Writer
}

// ask gives what failed and go test's code.
func (a asker) ask(more []string) (failures, int, error) {
	cmd := exec.Command("go", slices.Concat([]string{"test", "-json"}, a.flags, more)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return nil, 1, err
	}
	if err := cmd.Start(); err != nil {
		return nil, 1, err
	}
	failed, readErr := follow(events, a.out, a.verbose)
	if readErr != nil {
		_, _ = io.Copy(io.Discard, events) // let go test end
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return failed, exit.ExitCode(), readErr
	}
	return failed, 0, errors.Join(err, readErr)
}
