// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package childtest gives a test another process in one line: its own program, which a variable of the
// environment tells what to be instead of the tests.
//
// It imports nothing of ours, and only tests import it. The invariant to remember: a child ends with its test, and its
// input with the test's process, however that ends.
package childtest

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait: the machine may be busy.
const patience = 3 * time.Minute

// Child is such a process.
type Child struct {
	Process *os.Process
	In      io.WriteCloser // its standard input
	Said    string         // the first line of its output

	wait func() error
}

// Start starts the program with these variables, as "NAME=value", and returns when it has said a line.
// At the end of the test it is killed if it is there still.
func Start(t testing.TB, variables ...string) *Child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), variables...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &Child{Process: cmd.Process, In: in, wait: sync.OnceValue(cmd.Wait)}
	t.Cleanup(c.Kill)
	defer c.within()()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("a child says %q: %v", line, err)
	}
	c.Said = strings.TrimSuffix(line, "\n")
	return c
}

// End ends its input and waits for it. An error says how it has ended otherwise than well.
func (c *Child) End() error {
	defer c.within()()
	c.In.Close()
	return c.wait()
}

// Kill ends it at once and waits for it.
func (c *Child) Kill() {
	_ = c.Process.Kill()
	_ = c.wait()
	c.In.Close()
}

// within kills a child that is waited for in vain.
func (c *Child) within() (done func() bool) {
	return time.AfterFunc(patience, func() { _ = c.Process.Kill() }).Stop
}
