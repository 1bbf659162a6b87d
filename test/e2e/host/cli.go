// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"time"
)

// Result is what a command said and how it ended.
type Result struct {
	Stdout, Stderr string
	Code           int // -1 when it did not end by itself
}

// HoldTime is how long a command's output may stay open after its end before
// that counts as a hang: something that outlives it holds it. What the command itself
// has written is read by then, however busy the machine.
const HoldTime = 30 * time.Second

// Run runs a command to its end and to the end of its output. The error tells
// of a command that did not start, did not end in time, or whose output is held
// open by something else; a code is not an error.
func Run(ctx context.Context, stdin io.Reader, env []string, argv ...string) (Result, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = stdin
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = HoldTime
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: -1}
	if cmd.ProcessState != nil {
		r.Code = cmd.ProcessState.ExitCode()
	}
	var exit *exec.ExitError
	if ctx.Err() == nil && errors.As(err, &exit) {
		err = nil
	}
	return r, errors.Join(err, ctx.Err())
}

// Args is the command line of the OCI runtime under a root.
func (h *Host) Args(root string, args ...string) []string {
	return append([]string{h.Binary("bulkhead"), "--config", h.Config, "--root", root}, args...)
}

// CLI runs the OCI runtime.
func (h *Host) CLI(ctx context.Context, root string, args ...string) (Result, error) {
	return Run(ctx, nil, nil, h.Args(root, args...)...)
}
