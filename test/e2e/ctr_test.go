// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"bulkhead/test/e2e/engine"
	"bulkhead/test/e2e/host"
)

// ctrUser is someone with containerd alone.
type ctrUser struct {
	t   *testing.T
	ctr *engine.Ctr
}

func newCtr(t *testing.T) ctrUser {
	t.Helper()
	return ctrUser{t, ctrClient(t)}
}

func (c ctrUser) client() client { return client{c.t, c.ctr.Args, nil} }

func (c ctrUser) tryFor(limit time.Duration, stdin io.Reader, args ...string) host.Result {
	c.t.Helper()
	return c.client().tryFor(limit, stdin, args...)
}

func (c ctrUser) try(args ...string) host.Result {
	c.t.Helper()
	return c.client().try(args...)
}

func (c ctrUser) do(args ...string) string {
	c.t.Helper()
	return c.client().do(args...)
}

// exec runs a command in a task, whatever its code.
func (c ctrUser) exec(options []string, name string, command ...string) host.Result {
	c.t.Helper()
	return c.try(c.ctr.ExecArgs(options, name, newID("exec"), command...)...)
}

// talks runs a script in a task that ends, with the code it reads, only when all it should say has been heard.
// ctr itself loses the output of an exec that ends while ctr still opens its FIFOs: Process.Delete cancels the
// opening (containerd 1.6, cio.copyIO). With runc that is one exec in 2000 on a busy machine.
func (c ctrUser) talks(options []string, name, script string, want host.Result) {
	c.t.Helper()
	argv := c.client().argv(c.ctr.ExecArgs(options, name, newID("exec"), "sh", "-c", script)...)
	ctx := within(c.t, launchTime)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = host.HoldTime
	stdin, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	stdout, stderr := host.NewOutput(), host.NewOutput()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	heard := errors.Join(stdout.Until(ctx, want.Stdout), stderr.Until(ctx, want.Stderr))
	_, err = fmt.Fprintln(stdin, want.Code)
	_ = cmd.Wait() // its code is looked at
	if err := errors.Join(heard, err); err != nil {
		c.t.Fatalf("an exec: %v; it ends with %d", err, cmd.ProcessState.ExitCode())
	}
	expect(c.t, "stdout of an exec", stdout.String(), want.Stdout)
	expect(c.t, "stderr of an exec", stderr.String(), want.Stderr)
	expect(c.t, "the code of an exec", cmd.ProcessState.ExitCode(), want.Code)
}

// launch is "ctr run -d"; the container is removed after the test.
func (c ctrUser) launch(options []string, command ...string) string {
	c.t.Helper()
	name := newID("ctr")
	c.removeAfter(name)
	c.do(c.ctr.RunArgs(append([]string{"-d"}, options...), name, command...)...)
	return name
}

func (c ctrUser) removeAfter(name string) {
	c.t.Cleanup(func() {
		c.client().cleanUp(opts("not found"), "task", "rm", "--force", name)
		c.client().cleanUp(opts("not found"), "containers", "rm", name)
	})
}

// is waits until a task has a status.
func (c ctrUser) is(name, status string) {
	c.t.Helper()
	must(c.t, commandTime, func() error {
		for line := range strings.Lines(c.do("task", "ls")) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == name {
				if f[2] == status {
					return nil
				}
				return fmt.Errorf("task %s is %s instead of %s", name, f[2], status)
			}
		}
		return fmt.Errorf("there is no task %s", name)
	})
}

// deletes removes an ended task; ctr tells its code in a warning.
func (c ctrUser) deletes(name string, code int) {
	c.t.Helper()
	r := c.try("task", "delete", name)
	if want := fmt.Sprintf("exit with non-zero exit code %d", code); r.Code != 0 || !strings.Contains(r.Stderr, want) {
		c.t.Errorf("ctr task delete ends with %d and says %q without %q", r.Code, r.Stderr, want)
	}
}

func TestCtrRunGivesTheProgramsOutputAndCode(t *testing.T) {
	t.Parallel()
	c := newCtr(t)
	t.Run("code", func(t *testing.T) {
		t.Parallel()
		c := ctrUser{t, c.ctr}
		name := newID("ctr")
		r := c.tryFor(launchTime, strings.NewReader("typed\n"), c.ctr.RunArgs(opts("--rm", "--env", "A=b=c", "--cwd", "/var"), name,
			"sh", "-c", `head -n 1; pwd; echo "$A"; echo err >&2; exit 7`)...)
		expect(t, "stdout", r.Stdout, "typed\n/var\nb=c\n")
		expect(t, "stderr", r.Stderr, "err\n")
		expect(t, "the exit code", r.Code, 7)
		if all := c.do("containers", "ls", "-q"); strings.Contains(all, name) {
			t.Errorf("--rm left the container among %q", all)
		}
	})
	t.Run("missing program", func(t *testing.T) {
		t.Parallel()
		c := ctrUser{t, c.ctr}
		r := c.try(c.ctr.RunArgs(opts("--rm"), newID("ctr"), "no-such-program")...)
		if r.Code == 0 || !strings.Contains(r.Stderr, "executable file not found") {
			t.Errorf("code %d, stderr %q", r.Code, r.Stderr)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		t.Parallel()
		c := ctrUser{t, c.ctr}
		tt := c.client().terminal(33, 101, c.ctr.RunArgs(opts("--rm", "-t"), newID("ctr"), "sh", "-c", sizeScript)...)
		tt.shows("tty: /dev/pts/0")
		tt.shows("33 101.")
		tt.resize(44, 123)
		tt.shows("changed to 44 123.")
		tt.types("\x03")
		tt.shows("interrupted")
		tt.ends(7)
	})
}

func TestCtrWorksOnARunningTask(t *testing.T) {
	t.Parallel()
	c := newCtr(t)
	name := c.launch(opts("--null-io"), "sh", "-c", `trap 'exit 9' TERM; echo 0 > /n; while :; do sleep 0.1; done`)
	c.is(name, "RUNNING")

	c.talks(opts("--user", "1000:77", "--cwd", "/tmp"), name, "id -u; pwd; echo err >&2; read code; exit $code",
		host.Result{Stdout: "1000\n/tmp\n", Stderr: "err\n", Code: 42})
	r := c.exec(nil, name, "no-such-program")
	if r.Code == 0 || !strings.Contains(r.Stderr, "executable file not found") {
		t.Errorf("an exec of a missing program: code %d, stderr %q", r.Code, r.Stderr)
	}
	// ctr resizes an exec's terminal before it starts it, which no shim does.
	tt := c.client().terminal(31, 97, c.ctr.ExecArgs(opts("-t"), name, newID("exec"), "sh", "-c", "tty; read line; exit 5")...)
	tt.shows("/dev/pts/")
	tt.types("\r")
	tt.ends(5)

	if ps := strings.Split(c.do("task", "ps", name), "\n"); len(ps) < 2 || !strings.HasPrefix(ps[0], "PID") {
		t.Errorf("ctr task ps says %q", ps)
	}
	if metrics := c.do("task", "metrics", name); !strings.Contains(metrics, "memory.usage_in_bytes") && !strings.Contains(metrics, "memory.usage") {
		t.Errorf("ctr task metrics says %q", metrics)
	}

	detached := newID("detached")
	c.do(c.ctr.ExecArgs(opts("-d"), name, detached, "sh", "-c", `trap 'echo told > /told; exit 0' USR1; echo > /up; while :; do sleep 0.1; done`)...)
	must(t, commandTime, func() error {
		if r := c.exec(nil, name, "cat", "/up"); r.Code != 0 {
			return fmt.Errorf("the detached exec is not up: %s", r.Stderr)
		}
		return nil
	})
	c.do("task", "kill", "--exec-id", detached, "--signal", "SIGUSR1", name)
	must(t, commandTime, func() error {
		if r := c.exec(nil, name, "cat", "/told"); r.Stdout != "told\n" {
			return fmt.Errorf("the signal did not reach the detached exec: %q %s", r.Stdout, r.Stderr)
		}
		return nil
	})

	c.do("task", "pause", name)
	c.is(name, "PAUSED")
	if r := c.exec(nil, name, "true"); r.Code == 0 {
		t.Error("an exec ran in a paused task")
	}
	c.do("task", "resume", name)
	c.is(name, "RUNNING")

	c.do("task", "kill", name)
	c.is(name, "STOPPED")
	c.deletes(name, 9)
	c.do("containers", "rm", name)
}

func TestCtrKillsAndRemovesByForce(t *testing.T) {
	t.Parallel()
	c := newCtr(t)
	t.Run("all processes", func(t *testing.T) {
		t.Parallel()
		c := ctrUser{t, c.ctr}
		name := c.launch(opts("--null-io"), "sh", "-c", "trap '' TERM; sleep 1000 & wait; sleep 1000")
		c.do("task", "kill", "--all", "--signal", "SIGKILL", name)
		c.is(name, "STOPPED")
		c.deletes(name, 137)
	})
	t.Run("a running task", func(t *testing.T) {
		t.Parallel()
		c := ctrUser{t, c.ctr}
		name := c.launch(opts("--null-io"), "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
		c.try("task", "rm", "--force", name) // its code is the task's
		if all := c.do("task", "ls"); strings.Contains(all, name) {
			t.Errorf("the task is left: %q", all)
		}
	})
}
