// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Script is what a fake guest runs for a process. It returns the exit code. ctx
// ends when the process is killed or its VM ends; its return value is then
// ignored.
type Script func(ctx context.Context, p Process) int

// Process is what a Script sees of itself.
type Process struct {
	Container string
	ExecID    string // empty: init
	Args, Env []string
	Stdin     io.Reader
	Stdout    io.Writer
	Stderr    io.Writer
	// Signals delivers every signal but SIGKILL, which ends the process.
	Signals <-chan int
}

// Getenv is the value of a variable of the process's environment.
func (p Process) Getenv(name string) string {
	for _, e := range p.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// Shell is the default script; it knows a few commands by their last path
// component: true, false, echo WORDS, cat, exit N and sleep (until a signal).
// echo, cat and anything else end with the code in the variable FAKE_EXIT, or 0.
func Shell(ctx context.Context, p Process) int {
	if len(p.Args) == 0 {
		return 127
	}
	name := p.Args[0][strings.LastIndexByte(p.Args[0], '/')+1:]
	switch name {
	case "true":
		return 0
	case "false":
		return 1
	case "echo":
		fmt.Fprintln(p.Stdout, strings.Join(p.Args[1:], " "))
	case "exit":
		return number(strings.Join(p.Args[1:], ""))
	case "cat":
		return cat(ctx, p)
	case "sleep":
		select {
		case <-ctx.Done():
			return 137
		case n := <-p.Signals:
			return 128 + n
		}
	}
	return number(p.Getenv("FAKE_EXIT"))
}

// cat copies until the end of its input or a signal.
func cat(ctx context.Context, p Process) int {
	copied := make(chan error, 1)
	go func() { // ends with the streams, which end with the process
		_, err := io.Copy(p.Stdout, p.Stdin)
		copied <- err
	}()
	select {
	case err := <-copied:
		if err != nil {
			return 1
		}
		return number(p.Getenv("FAKE_EXIT"))
	case n := <-p.Signals:
		return 128 + n
	case <-ctx.Done():
		return 137
	}
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n & 0xff
}
