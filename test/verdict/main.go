// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command verdict runs "go test", shows its log as go test does, and repeats at the very end what failed and why: who
// keeps only the tail of a log of thousands of lines, as CI does, has the reason in it.
//
// It imports nothing of the project, and ends with the code of go test.
//
// usage: verdict [-v] [GO TEST ARGUMENT...]
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
)

func main() {
	args := os.Args[1:]
	verbose := len(args) > 0 && args[0] == "-v"
	if verbose {
		args = args[1:]
	}
	code, err := run(verbose, args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "verdict:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(verbose bool, args []string) (int, error) {
	// A person's ^C goes to go test as well, which ends the tests; its end is waited for.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	out := bufio.NewWriter(os.Stdout)
	failures, readErr := follow(events, out, verbose)
	if readErr != nil {
		_, _ = io.Copy(io.Discard, events) // let go test end
	}
	err = cmd.Wait()
	failures.write(out)
	readErr = errors.Join(readErr, out.Flush())
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), readErr
	}
	return 0, errors.Join(err, readErr)
}
