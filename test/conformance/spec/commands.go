// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/test/conformance"
	"bulkhead/test/e2e/host"
)

// The command line beyond the specification is runc's (runc.8), as engines call it.
func commandGroups() []conformance.Group {
	return []conformance.Group{life("exec", execs), life("commands", commands), life("run", runs), life("terminal", terminal)}
}

func execs(o *oci) []step {
	var c *container
	// says runs a command in the container and looks at its output and exit code.
	says := func(want string, code int, args ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			if c == nil {
				return errNoContainer
			}
			args := slices.Clone(args)
			r, err := o.cli(ctx, append([]string{"exec"}, replace(args, "ID", c.id)...)...)
			return errors.Join(err, equal("the exit code", r.Code, code), equal("the output", strings.TrimSpace(r.Stdout), want))
		}
	}
	return []step{
		{
			name: "runc.8#exec/exit-code", says: "exec ends with the exit code of its process",
			take: func(ctx context.Context) (err error) {
				spec := host.NewSpec("sleep", "1000")
				spec.Process.Env = append(spec.Process.Env, "OF_THE_CONTAINER=1")
				if c, err = o.launch(ctx, spec); err != nil {
					return err
				}
				return says("", 42, "ID", "sh", "-c", "exit 42")(ctx)
			},
		},
		{name: "runc.8#exec/killed-by-a-signal", says: "the exit code of a process that a signal ended is 128 and its number", take: says("", 137, "ID", "sh", "-c", "kill -9 $$")},
		{name: "runc.8#exec/environment", says: "exec has the environment of the container, and that of --env", take: says("1 x=y", 0, "--env", "MORE=x=y", "ID", "sh", "-c", "echo $OF_THE_CONTAINER $MORE")},
		{name: "runc.8#exec/cwd", says: "--cwd is the working directory", take: says("/home/app", 0, "--cwd", "/home/app", "ID", "pwd")},
		{name: "runc.8#exec/user", says: "--user is the user and the group", take: says("1000 1001", 0, "--user", "1000:1001", "ID", "sh", "-c", "echo $(id -u) $(id -g)")},
		{name: "runc.8#exec/additional-gids", says: "--additional-gids are further groups", take: says("yes", 0, "--user", "1000:1000", "--additional-gids", "77", "ID", "sh", "-c", "id -G | grep -qw 77 && echo yes")},
		{
			name: "runc.8#exec/standard-input", says: "standard input reaches the process, and its end too",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				r, err := host.Run(ctx, strings.NewReader("a line\nno line end"), nil, o.args("exec", c.id, "cat")...)
				return errors.Join(err, equal("the output", r.Stdout, "a line\nno line end"))
			},
		},
		{
			name: "runc.8#exec/standard-error", says: "standard error is apart from standard output",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				r, err := o.cli(ctx, "exec", c.id, "sh", "-c", "echo out; echo err >&2")
				return errors.Join(err, equal("standard output", r.Stdout, "out\n"), equal("standard error", r.Stderr, "err\n"))
			},
		},
		{
			name: "runc.8#exec/process-file", says: "--process gives the whole process, with its own capabilities, limits and noNewPrivileges",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				file := filepath.Join(o.stage.Dir, "process.json")
				process := specs.Process{
					Args: []string{"sh", "-c", "grep -E 'NoNewPrivs|CapEff' /proc/self/status; ulimit -n"}, Env: []string{"PATH=/bin"}, Cwd: "/", NoNewPrivileges: true,
					Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Effective: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL"}},
					Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 222, Hard: 222}},
				}
				if err := writeJSON(file, process); err != nil {
					return err
				}
				r, err := o.cli(ctx, "exec", "--process", file, c.id)
				return errors.Join(err, equal("the output", strings.Join(strings.Fields(r.Stdout), " "), "CapEff: 0000000000000020 NoNewPrivs: 1 222"))
			},
		},
		{
			name: "runc.8#exec/detach", says: "--detach returns at once and writes the pid of a process that ends with the exit code",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				pidFile := filepath.Join(o.stage.Dir, "exec.pid")
				m, err := host.Monitor(ctx, pidFile, o.args("exec", "--detach", "--pid-file", pidFile, c.id, "sh", "-c", "cat; exit 9")...)
				if err != nil {
					return err
				}
				if m.Code != 0 || m.PID == 0 {
					return fmt.Errorf("exec ended with %d, pid-file %q: %s", m.Code, m.PidFile, m.Stderr)
				}
				if err := m.Stdin.Close(); err != nil {
					return err
				}
				code, err := m.Wait(ctx)
				return errors.Join(err, equal("the exit code", code, 9))
			},
		},
		{
			name: "runc.8#exec/missing-program", says: "a program that does not exist is an error, with an exit code that is not 0",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				r, err := o.cli(ctx, "exec", c.id, "no-such-program")
				if err == nil && (r.Code == 0 || !strings.Contains(r.Stderr, "executable file not found in $PATH")) {
					err = fmt.Errorf("it ended with %d and said %q", r.Code, r.Stderr)
				}
				return err
			},
		},
		{
			name: "runc.8#exec/in-a-stopped-container", says: "exec in a stopped container is an error",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				if _, err := o.do(ctx, "kill", c.id, "KILL"); err != nil {
					return err
				}
				return errors.Join(c.becomes(ctx, specs.StateStopped), o.fails(ctx, "exec", c.id, "true"))
			},
		},
	}
}

func replace(args []string, from, to string) []string {
	for i, arg := range args {
		if arg == from {
			args[i] = to
		}
	}
	return args
}

func commands(o *oci) []step {
	var c *container
	return []step{
		{
			name: "runc.8#list/json", says: "list --format json has the container with its pid, bundle and status",
			take: func(ctx context.Context) (err error) {
				if c, err = o.launch(ctx, host.NewSpec("sleep", "1000")); err != nil {
					return err
				}
				text, err := o.do(ctx, "list", "--format", "json")
				if err != nil {
					return err
				}
				var all []specs.State
				if err := json.Unmarshal([]byte(text), &all); err != nil {
					return err
				}
				if len(all) != 1 || all[0].ID != c.id || all[0].Pid != c.PID || all[0].Bundle != c.bundle || all[0].Status != specs.StateRunning {
					return fmt.Errorf("the list is %+v", all)
				}
				return nil
			},
		},
		{
			name: "runc.8#list/quiet", says: "list --quiet prints ids alone",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				text, err := o.do(ctx, "list", "--quiet")
				return errors.Join(err, equal("the list", text, c.id+"\n"))
			},
		},
		{
			name: "runc.8#ps/json", says: "ps --format json has the pid of the container's process",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				text, err := o.do(ctx, "ps", "--format", "json", c.id)
				if err != nil {
					return err
				}
				var pids []int
				if err := json.Unmarshal([]byte(text), &pids); err != nil {
					return err
				}
				if !slices.Contains(pids, c.PID) {
					return fmt.Errorf("pids are %d without %d", pids, c.PID)
				}
				return nil
			},
		},
		{
			name: "runc.8#pause/status", says: "a paused container has the status paused",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				_, err := o.do(ctx, "pause", c.id)
				return errors.Join(err, c.is(ctx, "paused"))
			},
		},
		{
			name: "runc.8#pause/exec", says: "exec in a paused container is an error",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return o.fails(ctx, "exec", c.id, "true")
			},
		},
		{
			name: "runc.8#pause/delete", says: "delete of a paused container is an error and has no effect",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return errors.Join(o.fails(ctx, "delete", c.id), c.is(ctx, "paused"))
			},
		},
		{
			name: "runc.8#resume/status", says: "a resumed container runs on",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				_, err := o.do(ctx, "resume", c.id)
				return errors.Join(err, c.is(ctx, specs.StateRunning), o.fails(ctx, "resume", c.id))
			},
		},
		{
			name: "runc.8#kill/unknown-signal", says: "a signal that does not exist is an error and has no effect",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return errors.Join(o.fails(ctx, "kill", c.id, "NOSUCH"), c.is(ctx, specs.StateRunning))
			},
		},
		{
			name: "runc.8#kill/number", says: "a signal may be given by its number",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				if _, err := o.do(ctx, "kill", c.id, "9"); err != nil {
					return err
				}
				code, err := c.Wait(ctx)
				return errors.Join(err, equal("the exit code", code, 128+int(syscall.SIGKILL)))
			},
		},
		{
			name: "runc.8#delete/force-of-nothing", says: "delete --force of a container that does not exist is no error",
			take: func(ctx context.Context) error { _, err := o.do(ctx, "delete", "--force", o.newID()); return err },
		},
		{
			name: "runc.8#spec/config", says: "spec writes a config.json, and does not overwrite one",
			take: func(ctx context.Context) error {
				if _, err := o.do(ctx, "spec", "--bundle", o.stage.Dir); err != nil {
					return err
				}
				var spec specs.Spec
				err := readJSON(filepath.Join(o.stage.Dir, "config.json"), &spec)
				return errors.Join(err, equal("root.path", spec.Root.Path, "rootfs"), o.fails(ctx, "spec", "--bundle", o.stage.Dir))
			},
		},
		{
			name: "runc.8#log/json", says: "an error is appended to --log as one JSON object with level, msg and time",
			take: func(ctx context.Context) error {
				file := filepath.Join(o.stage.Dir, "log.json")
				if err := o.fails(ctx, "--log", file, "--log-format", "json", "state", "no-such-container"); err != nil {
					return err
				}
				var line struct{ Level, Msg, Time string }
				err := readJSON(file, &line)
				if err == nil && (line.Level != "error" || line.Msg == "" || line.Time == "") {
					err = fmt.Errorf("the line is %+v", line)
				}
				return err
			},
		},
		{
			name: "runc.8#version", says: "--version prints the program, its commit and the version of the specification, a line each",
			take: func(ctx context.Context) error {
				text, err := o.do(ctx, "--version")
				for _, part := range []string{" version ", "\ncommit: ", "\nspec: 1."} {
					if err == nil && !strings.Contains(text, part) {
						err = fmt.Errorf("it says %q", text)
					}
				}
				return err
			},
		},
	}
}

func runs(o *oci) []step {
	return []step{
		{
			name: "runc.8#run/exit-code", says: "run creates, starts, waits, ends with the exit code of the program and deletes the container",
			take: func(ctx context.Context) error {
				bundle, err := o.bundle(host.NewSpec("sh", "-c", "read line; echo got $line; exit 5"))
				if err != nil {
					return err
				}
				id := o.newID()
				r, err := host.Run(ctx, strings.NewReader("input\n"), nil, o.args("run", "--bundle", bundle, id)...)
				return errors.Join(err, equal("the exit code", r.Code, 5), equal("the output", r.Stdout, "got input\n"), o.fails(ctx, "state", id))
			},
		},
		{
			name: "runc.8#run/keep", says: "--keep leaves the stopped container",
			take: func(ctx context.Context) error {
				bundle, err := o.bundle(host.NewSpec("true"))
				if err != nil {
					return err
				}
				id := o.newID()
				if _, err := o.do(ctx, "run", "--keep", "--bundle", bundle, id); err != nil {
					return err
				}
				c := &container{o: o, id: id}
				return c.becomes(ctx, specs.StateStopped)
			},
		},
	}
}

// terminal is what config.md#process asks of a terminal; how its master comes to
// the caller is runc's (docs/terminals.md).
func terminal(o *oci) []step {
	var master *os.File
	var c *container
	return []step{
		{
			name: "runc.8#create/console-socket", says: "the master of the terminal comes through --console-socket, in one message",
			take: func(ctx context.Context) error {
				spec := host.NewSpec("sh", "-c", "stty size; tty; read line; echo got $line; exit 3")
				spec.Process.Terminal = true
				spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 111}
				bundle, err := o.bundle(spec)
				if err != nil {
					return err
				}
				path := filepath.Join(o.stage.Dir, "tty.sock")
				console, err := host.ListenConsole(path)
				if err != nil {
					return err
				}
				if c, err = o.create(ctx, bundle, "--console-socket", path); err != nil {
					return err
				}
				master, err = console.Receive(ctx)
				return err
			},
		},
		{
			name: "config.md#process/consoleSize", says: "consoleSize is the size of the terminal",
			take: func(ctx context.Context) error { return ttySays(ctx, c, master, "33 111", true) },
		},
		{
			name: "config.md#process/terminal", says: "the program's standard streams are a terminal of the container's own",
			take: func(ctx context.Context) error { return ttySays(ctx, c, master, "/dev/", false) },
		},
		{
			name: "runc.8#create/terminal-input", says: "what is written to the master is the program's input, and it ends with its own exit code",
			take: func(ctx context.Context) error {
				if master == nil {
					return errNoContainer
				}
				if _, err := master.WriteString("typed\n"); err != nil {
					return err
				}
				if err := ttySays(ctx, c, master, "got typed", false); err != nil {
					return err
				}
				code, err := c.Wait(ctx)
				return errors.Join(err, equal("the exit code", code, 3), master.Close())
			},
		},
		{
			name: "runc.8#create/terminal-needs-a-socket", says: "create with a terminal and without --console-socket is an error",
			take: func(ctx context.Context) error {
				spec := host.NewSpec("true")
				spec.Process.Terminal = true
				bundle, err := o.bundle(spec)
				if err != nil {
					return err
				}
				return o.refused(ctx, bundle)
			},
		},
	}
}

// ttySays reads lines of a terminal until one holds a text; start starts the
// container before.
func ttySays(ctx context.Context, c *container, master *os.File, want string, start bool) error {
	if c == nil || master == nil {
		return errNoContainer
	}
	if start {
		if err := c.start(ctx); err != nil {
			return err
		}
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := master.SetReadDeadline(deadline); err != nil {
			return err
		}
	}
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := master.Read(b); err != nil {
			return fmt.Errorf("the terminal says no %q: %w; last %q", want, err, line)
		}
		if line = append(line, b[0]); b[0] == '\n' {
			if strings.Contains(string(line), want) {
				return nil
			}
			line = nil
		}
	}
}
