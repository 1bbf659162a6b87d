// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/creack/pty"

	"bulkhead/test/e2e/host"
)

// terminal runs a command at a terminal of 31 rows and 97 columns. As soon as the
// screen shows a text, keys are typed. What the screen showed at the end is stdout.
func (t *trial) terminal(c client, shows, keys string, args ...string) outcome {
	argv := c.argv(args...)
	o := outcome{Result: host.Result{Code: -1}, t: t, command: args}
	if t.hung {
		return o
	}
	ctx, cancel := context.WithTimeout(t.ctx, stepTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(cmd.Environ(), c.env...)
	master, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 31, Cols: 97})
	if err != nil {
		t.complain("%s: %w", strings.Join(args, " "), err)
		return o
	}
	defer master.Close()
	screen := host.NewOutput()
	open, drained := context.WithCancel(ctx)
	go func() { // ends with the last who holds the terminal, or when we close it
		defer drained()
		_, _ = io.Copy(screen, master) // EIO is how a terminal ends
	}()
	if err := screen.Until(open, shows); err != nil {
		t.complain("%s: the terminal: %w", strings.Join(args, " "), err)
	} else if _, err := io.WriteString(master, keys); err != nil {
		t.complain("%s: typing %q: %w", strings.Join(args, " "), keys, err)
	}
	err = cmd.Wait()
	<-open.Done()
	o.Stdout, o.Code = screen.String(), cmd.ProcessState.ExitCode()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		t.hang(fmt.Errorf("%s at a terminal: %w; the screen: %.300q", strings.Join(args, " "), errors.Join(err, ctx.Err()), o.Stdout))
	}
	return o
}
