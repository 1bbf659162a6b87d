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
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/test/conformance"
	"bulkhead/test/e2e/host"
)

// step is a case that stands at its place in the life of one container.
type step struct {
	name, says string
	take       func(context.Context) error
	declared   map[string]conformance.Declaration
}

// life is a group of steps, one after the other. A step that fails does not end
// it: later ones say themselves what they miss.
func life(name string, steps func(o *oci) []step) conformance.Group {
	g := conformance.Group{Name: name}
	for _, s := range steps(nil) {
		g.Cases = append(g.Cases, conformance.Case{Name: s.name, Says: s.says, Declared: s.declared})
	}
	g.Run = func(ctx context.Context, s *conformance.Stage) (err error) {
		o := newOCI(s)
		defer func() { err = errors.Join(err, o.close()) }()
		for _, step := range steps(o) {
			s.Verdict(step.name, step.take(ctx))
		}
		return nil
	}
	return g
}

func lifecycleGroups() []conformance.Group {
	return []conformance.Group{
		life("lifecycle", lifecycle),
		life("arguments", arguments),
		life("without-a-process", withoutProcess),
		life("failing-program", failingProgram),
	}
}

// told tells of signals by files, and ends with 7 when it is asked to.
const told = `trap 'echo x >> /usr1' USR1; trap 'exit 7' TERM; echo x > /ran; echo ready; while :; do sleep 1000 & wait $!; done`

var errNoContainer = errors.New("there is no container to ask")

func lifecycle(o *oci) []step {
	var c *container
	var bundle string
	rootfs := func(name string) string { return filepath.Join(bundle, "rootfs", name) }
	var state specs.State
	return []step{
		{
			name: "runtime.md#create/creates-a-container", says: "create makes a new container of a bundle and an id",
			take: func(ctx context.Context) (err error) {
				if bundle, err = o.bundle(host.NewSpec("sh", "-c", told)); err != nil {
					return err
				}
				c, err = o.create(ctx, bundle)
				return err
			},
		},
		{
			name: "runtime.md#query-state/answers", says: "state answers with the state of a container, in JSON",
			take: func(ctx context.Context) (err error) {
				if c == nil {
					return errNoContainer
				}
				state, err = c.state(ctx)
				return err
			},
		},
		{
			name: "runtime.md#state/ociVersion", says: "ociVersion is a version of the specification",
			take: func(context.Context) error {
				if !strings.HasPrefix(state.Version, "1.") || strings.Count(state.Version, ".") < 2 {
					return fmt.Errorf("it is %q", state.Version)
				}
				return nil
			},
		},
		{
			name: "runtime.md#state/id", says: "id is the container's id",
			take: func(context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return equal("id", state.ID, c.id)
			},
		},
		{
			name: "runtime.md#state/status-created", says: "status is created after create",
			take: func(context.Context) error { return equal("status", state.Status, specs.StateCreated) },
		},
		{
			name: "runtime.md#state/pid", says: "pid is the id of a living process on the host, the same as in the pid-file",
			take: func(context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return errors.Join(equal("pid", state.Pid, c.PID), unix.Kill(state.Pid, 0))
			},
		},
		{
			name: "runtime.md#state/bundle", says: "bundle is the absolute path of the bundle",
			take: func(context.Context) error { return equal("bundle", state.Bundle, bundle) },
		},
		{
			name: "runtime.md#create/id-is-unique", says: "an id that is taken is refused, and its container stays as it is",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				if err := o.fails(ctx, "create", "--bundle", bundle, c.id); err != nil {
					return err
				}
				return c.is(ctx, specs.StateCreated)
			},
		},
		{
			name: "runtime.md#create/program-does-not-run", says: "the program is not run before start",
			take: func(context.Context) error { return absent(rootfs("ran")) },
		},
		{
			name: "runtime.md#lifecycle/config-is-read-once", says: "what is done to config.json after create has no effect",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				if err := writeJSON(filepath.Join(bundle, "config.json"), host.NewSpec("sh", "-c", "echo x > /edited")); err != nil {
					return err
				}
				if err := c.start(ctx); err != nil {
					return err
				}
				if err := c.Stdout.Until(ctx, "ready"); err != nil {
					return err
				}
				return absent(rootfs("edited"))
			},
		},
		{
			name: "runtime.md#start/runs-the-program", says: "start runs the program",
			take: func(context.Context) error { _, err := os.Stat(rootfs("ran")); return err },
		},
		{
			name: "runtime.md#state/status-running", says: "status is running after start",
			take: func(ctx context.Context) error { return c.is(ctx, specs.StateRunning) },
		},
		{
			name: "runtime.md#start/of-a-running-container", says: "start of a running container is an error and has no effect",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return errors.Join(o.fails(ctx, "start", c.id), c.is(ctx, specs.StateRunning))
			},
		},
		{
			name: "runtime.md#delete/of-a-running-container", says: "delete of a running container is an error and has no effect",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return errors.Join(o.fails(ctx, "delete", c.id), c.is(ctx, specs.StateRunning))
			},
		},
		{
			name: "runtime.md#kill/sends-the-signal", says: "kill sends the given signal to the program, and nothing else",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				if _, err := o.do(ctx, "kill", c.id, "USR1"); err != nil {
					return err
				}
				return errors.Join(appears(ctx, rootfs("usr1")), c.is(ctx, specs.StateRunning))
			},
		},
		{
			name: "runtime.md#kill/term-ends-it-with-its-own-code", says: "a program that handles a signal ends with its own exit code",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				if _, err := o.do(ctx, "kill", c.id, "TERM"); err != nil {
					return err
				}
				code, err := c.Wait(ctx)
				return errors.Join(err, equal("the exit code", code, 7))
			},
		},
		{
			name: "runtime.md#state/status-stopped", says: "status is stopped after the program has ended",
			take: func(ctx context.Context) error { return c.is(ctx, specs.StateStopped) },
		},
		{
			name: "runtime.md#kill/of-a-stopped-container", says: "kill of a stopped container is an error",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return o.fails(ctx, "kill", c.id, "TERM")
			},
		},
		{
			name: "runtime.md#start/of-a-stopped-container", says: "start of a stopped container is an error and runs nothing",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return errors.Join(os.Remove(rootfs("ran")), o.fails(ctx, "start", c.id), c.is(ctx, specs.StateStopped), absent(rootfs("ran")))
			},
		},
		{
			name: "runtime.md#delete/deletes-the-container", says: "delete of a stopped container succeeds, and its state is gone",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				_, err := o.do(ctx, "delete", c.id)
				return errors.Join(err, o.fails(ctx, "state", c.id))
			},
		},
		{
			name: "runtime.md#delete/deletes-what-create-made", says: "delete leaves no cgroup and no process of the container",
			take: func(context.Context) error {
				if c == nil {
					return errNoContainer
				}
				cgroups, err := o.cgroups(c.id)
				if len(cgroups) > 0 {
					err = errors.Join(err, fmt.Errorf("cgroups are left: %q", cgroups))
				}
				if unix.Kill(c.PID, 0) == nil {
					err = errors.Join(err, fmt.Errorf("process %d is left", c.PID))
				}
				return err
			},
		},
		{
			name: "runtime.md#delete/leaves-what-it-did-not-make", says: "delete leaves the bundle and the root file system",
			take: func(context.Context) error { _, err := os.Stat(rootfs("bin/busybox")); return err },
		},
		{
			name: "runtime.md#create/id-may-be-used-again", says: "the id of a deleted container is free again",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				pidFile := filepath.Join(o.stage.Dir, "again.pid")
				m, err := host.Monitor(ctx, pidFile, o.args("create", "--bundle", bundle, "--pid-file", pidFile, c.id)...)
				if err != nil {
					return err
				}
				return errors.Join(equal("the exit code of create", m.Code, 0), m.Stdin.Close())
			},
		},
		{
			name: "runtime.md#kill/of-a-created-container", says: "a container that is created and not started can be sent a signal",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				_, err := o.do(ctx, "kill", c.id, "KILL")
				return errors.Join(err, c.becomes(ctx, specs.StateStopped))
			},
		},
	}
}

func arguments(o *oci) []step {
	var unknown string
	if o != nil {
		unknown = o.stage.Ground.Token + "-unknown"
	}
	fails := func(args ...string) func(context.Context) error {
		return func(ctx context.Context) error { return o.fails(ctx, args...) }
	}
	id := func(id string) func(context.Context) error {
		return func(ctx context.Context) error {
			bundle, err := o.bundle(host.NewSpec("true"))
			if err != nil {
				return err
			}
			return errors.Join(o.fails(ctx, "create", "--bundle", bundle, id), os.RemoveAll(bundle))
		}
	}
	return []step{
		{name: "runtime.md#query-state/needs-an-id", says: "state without an id is an error", take: fails("state")},
		{name: "runtime.md#query-state/of-an-unknown-container", says: "state of a container that does not exist is an error", take: fails("state", unknown)},
		{name: "runtime.md#create/needs-an-id", says: "create without an id is an error", take: fails("create")},
		{name: "runtime.md#create/needs-a-bundle", says: "create of a bundle that does not exist is an error", take: fails("create", "--bundle", "/no/such/bundle", unknown)},
		{
			name: "bundle.md#container-format/config-is-required", says: "create of a bundle without config.json is an error",
			take: func(ctx context.Context) error { return o.fails(ctx, "create", "--bundle", o.stage.Data, unknown) },
		},
		{name: "runtime.md#create/id-is-valid-slash", says: "an id with a slash is refused", take: id("a/b")},
		{name: "runtime.md#create/id-is-valid-dots", says: "the id .. is refused", take: id("..")},
		{name: "runtime.md#create/id-is-valid-empty", says: "an empty id is refused", take: id("")},
		{name: "runtime.md#start/needs-an-id", says: "start without an id is an error", take: fails("start")},
		{name: "runtime.md#start/of-an-unknown-container", says: "start of a container that does not exist is an error", take: fails("start", unknown)},
		{name: "runtime.md#kill/needs-an-id", says: "kill without an id is an error", take: fails("kill")},
		{name: "runtime.md#kill/of-an-unknown-container", says: "kill of a container that does not exist is an error", take: fails("kill", unknown, "TERM")},
		{name: "runtime.md#delete/needs-an-id", says: "delete without an id is an error", take: fails("delete")},
		{name: "runtime.md#delete/of-an-unknown-container", says: "delete of a container that does not exist is an error", take: fails("delete", unknown)},
	}
}

func withoutProcess(o *oci) []step {
	var c *container
	declared := map[string]conformance.Declaration{conformance.Runc: conformance.Fails("1.1.5 wants a process at create already")}
	return []step{
		{
			name: "config.md#process/optional-at-create", says: "a container can be created of a configuration without a process",
			take: func(ctx context.Context) error {
				spec := host.NewSpec()
				spec.Process = nil
				bundle, err := o.bundle(spec)
				if err == nil {
					c, err = o.create(ctx, bundle)
				}
				return err
			},
			declared: declared,
		},
		{
			name: "runtime.md#start/needs-a-process", says: "start of a container without a process is an error",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				return o.fails(ctx, "start", c.id)
			},
			declared: declared,
		},
	}
}

func failingProgram(o *oci) []step {
	return []step{
		{
			name: "config.md#process/args-execvp", says: "a program that is not in PATH is an error of create or of start",
			take: func(ctx context.Context) error { return o.failsToRun(ctx, "no-such-program") },
		},
		{
			name: "config.md#process/args-executable", says: "a file that may not be executed is an error of create or of start",
			take: func(ctx context.Context) error { return o.failsToRun(ctx, "/etc/passwd") },
		},
	}
}

// failsToRun complains unless create or start of a program fails.
func (o *oci) failsToRun(ctx context.Context, program string) error {
	bundle, err := o.bundle(host.NewSpec(program))
	if err != nil {
		return err
	}
	c, err := o.try(ctx, bundle)
	if err != nil || c.Code != 0 {
		return err
	}
	if err := o.fails(ctx, "start", c.id); err != nil {
		return err
	}
	return c.becomes(ctx, specs.StateStopped)
}

// is complains unless a container is in a state.
func (c *container) is(ctx context.Context, want specs.ContainerState) error {
	if c == nil {
		return errNoContainer
	}
	state, err := c.state(ctx)
	return errors.Join(err, equal("status", state.Status, want))
}

// becomes waits for a container to be in a state.
func (c *container) becomes(ctx context.Context, want specs.ContainerState) error {
	return within(ctx, func() error { return c.is(ctx, want) })
}

func absent(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s exists", filepath.Base(path))
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// appears waits for a file.
func appears(ctx context.Context, path string) error {
	return within(ctx, func() error { _, err := os.Stat(path); return err })
}

// within repeats a look until it pleases, for a time that is long enough on any
// machine: the suite looks from outside, where no event tells.
func within(ctx context.Context, look func() error) error {
	const patience, pause = 30 * time.Second, 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := look()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

func readJSON(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
