// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"os"
	"os/exec"
	"strings"

	"bulkhead/test/e2e/host"
)

// background is a command of a person that runs on while others do something.
type background struct {
	t      *trial
	args   []string
	output *host.Output
	ctx    context.Context
	ended  chan struct{} // closed when the command and its output have ended
	cmd    *exec.Cmd
}

// background starts a Docker command. It is killed when its time is over.
func (t *trial) background(args ...string) *background {
	c := t.bench.docker
	ctx, cancel := context.WithTimeout(t.ctx, stepTime)
	argv := c.argv(args...)
	b := &background{t: t, args: args, output: host.NewOutput(), ctx: ctx, ended: make(chan struct{})}
	b.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	b.cmd.Env = append(os.Environ(), c.env...)
	b.cmd.Stdout, b.cmd.Stderr = b.output, b.output
	if err := b.cmd.Start(); err != nil {
		t.complain("%s: %w", strings.Join(args, " "), err)
		cancel()
		close(b.ended)
		return b
	}
	go func() { // ends with the command, which ends with its time
		defer cancel()
		defer close(b.ended)
		_ = b.cmd.Wait() // its state says it
	}()
	return b
}

// until waits for a text in the output.
func (b *background) until(text string) {
	if err := b.output.Until(b.ctx, text); err != nil {
		b.t.complain("%s: %w", strings.Join(b.args, " "), err)
	}
}

// ends waits for the end with a code.
func (b *background) ends(code int) {
	<-b.ended
	if b.cmd.ProcessState == nil {
		return // it never ran, and that was said
	}
	if got := b.cmd.ProcessState.ExitCode(); got != code {
		b.t.complain("%s ends with %d instead of %d; it said %.300q", strings.Join(b.args, " "), got, code, b.output)
	}
}
