// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/test/conformance"
	"bulkhead/test/e2e/host"
)

func hookGroups() []conformance.Group {
	return []conformance.Group{life("hooks", hooks), life("hooks-create-container", hookInTheContainersNamespace), life("hooks-failing", failingHooks)}
}

// hostHook appends a line to a log and keeps its standard input.
func hostHook(dir, name string) specs.Hook {
	return specs.Hook{
		Path: "/bin/sh", Args: []string{"hook", "-c", `cat > "$DIR/$0.json"; echo "$0 $*" >> "$DIR/log"; env > "$DIR/$0.env"; readlink /proc/self/ns/mnt > "$DIR/$0.mnt"`, name, "a b"},
		Env: []string{"DIR=" + dir, "PATH=/usr/bin:/bin", "ONLY=this"},
	}
}

func hooks(o *oci) []step {
	var c *container
	var bundle, dir string
	log := func() ([]string, error) {
		text, err := os.ReadFile(filepath.Join(dir, "log"))
		return strings.Fields(strings.ReplaceAll(string(text), " a b", "")), err
	}
	logged := func(want ...string) error {
		got, err := log()
		return errors.Join(err, equalList("the hooks that ran", got, want))
	}
	state := func(name string) (specs.State, error) {
		var state specs.State
		return state, readJSON(filepath.Join(dir, name+".json"), &state)
	}
	early := []string{"prestart", "prestart2", "createRuntime"}
	return []step{
		{
			name: "config.md#posix-platform-hooks/prestart-in-create", says: "prestart and then createRuntime hooks run as part of create, in the listed order",
			take: func(ctx context.Context) (err error) {
				dir = o.stage.Dir
				spec := host.NewSpec("sh", "-c", "echo program >> /inside; exec sleep 1000")
				spec.Hooks = &specs.Hooks{
					Prestart:       []specs.Hook{hostHook(dir, "prestart"), hostHook(dir, "prestart2")},
					CreateRuntime:  []specs.Hook{hostHook(dir, "createRuntime")},
					StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat > /start.json; echo startContainer >> /inside; hostname > /start.hostname"}, Env: []string{"PATH=/bin"}}},
					Poststart:      []specs.Hook{hostHook(dir, "poststart")},
					Poststop:       []specs.Hook{hostHook(dir, "poststop"), {Path: "/bin/false"}, hostHook(dir, "poststop2")},
				}
				if bundle, err = o.bundle(spec); err != nil {
					return err
				}
				if c, err = o.create(ctx, bundle); err != nil {
					return err
				}
				return logged(early...)
			},
			declared: lenient("runs poststart hooks in create already"),
		},
		{
			name: "config.md#posix-platform-hooks/state-on-stdin", says: "hooks are given the state of the container on standard input",
			take: func(context.Context) error {
				if c == nil {
					return errNoContainer
				}
				got, err := state("createRuntime")
				return errors.Join(err, equal("id", got.ID, c.id), equal("bundle", got.Bundle, bundle), equal("pid", got.Pid, c.PID))
			},
		},
		{
			name: "runtime.md#state/status-creating", says: "status is creating while create is not done",
			take: func(context.Context) error {
				got, err := state("createRuntime")
				return errors.Join(err, equal("status", got.Status, specs.StateCreating))
			},
		},
		{
			name: "config.md#posix-platform-hooks/args", says: "args are the hook's arguments, the first one its name",
			take: func(context.Context) error {
				text, err := os.ReadFile(filepath.Join(dir, "log"))
				line, _, _ := strings.Cut(string(text), "\n")
				return errors.Join(err, equal("the arguments", line, "prestart a b"))
			},
		},
		{
			name: "config.md#posix-platform-hooks/env", says: "env is the hook's environment, and all of it",
			take: func(context.Context) error {
				text, err := os.ReadFile(filepath.Join(dir, "createRuntime.env"))
				var others []string
				for line := range strings.Lines(string(text)) {
					name, _, _ := strings.Cut(line, "=")
					switch name {
					case "DIR", "PATH", "ONLY", "PWD", "OLDPWD", "_", "SHLVL": // the shell sets those after ONLY
					default:
						others = append(others, name)
					}
				}
				if len(others) > 0 || !strings.Contains(string(text), "ONLY=this\n") {
					err = errors.Join(err, fmt.Errorf("the environment is %q", text))
				}
				return err
			},
		},
		{
			name: "config.md#posix-platform-hooks/createRuntime-in-the-runtime-namespace", says: "createRuntime hooks run in the mount namespace of the runtime's caller",
			take: func(context.Context) error {
				text, err := os.ReadFile(filepath.Join(dir, "createRuntime.mnt"))
				own, err2 := os.Readlink("/proc/self/ns/mnt")
				return errors.Join(err, err2, equal("the namespace", strings.TrimSpace(string(text)), own))
			},
		},
		{
			name: "config.md#posix-platform-hooks/startContainer-not-in-create", says: "startContainer hooks do not run before start",
			take: func(context.Context) error { return absent(filepath.Join(bundle, "rootfs/inside")) },
		},
		{
			name: "config.md#posix-platform-hooks/startContainer-before-the-program", says: "startContainer hooks run in start, before the program",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				if err := c.start(ctx); err != nil {
					return err
				}
				return within(ctx, func() error {
					text, err := os.ReadFile(filepath.Join(bundle, "rootfs/inside"))
					return errors.Join(err, equal("what ran inside", string(text), "startContainer\nprogram\n"))
				})
			},
		},
		{
			name: "config.md#posix-platform-hooks/startContainer-in-the-container", says: "startContainer hooks resolve and run in the container's namespaces, with the state on standard input",
			take: func(context.Context) error {
				if c == nil {
					return errNoContainer
				}
				var got specs.State
				err := readJSON(filepath.Join(bundle, "rootfs/start.json"), &got)
				name, err2 := os.ReadFile(filepath.Join(bundle, "rootfs/start.hostname"))
				return errors.Join(err, err2, equal("id", got.ID, c.id), equal("status", got.Status, specs.StateCreated), equal("the host name", strings.TrimSpace(string(name)), "bundle"))
			},
		},
		{
			name: "config.md#posix-platform-hooks/poststart-in-start", says: "poststart hooks run after the program was started and before start returns, with status running",
			take: func(context.Context) error {
				got, err := state("poststart")
				return errors.Join(err, equal("status", got.Status, specs.StateRunning), logged(append(early, "poststart")...))
			},
			declared: lenient("runs poststart hooks in create already, with status created"),
		},
		{
			name: "config.md#posix-platform-hooks/poststop-in-delete", says: "poststop hooks run in delete; one that fails is a warning, and those after it run",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				if _, err := o.do(ctx, "kill", c.id, "KILL"); err != nil {
					return err
				}
				if err := c.becomes(ctx, specs.StateStopped); err != nil {
					return err
				}
				_, err := o.do(ctx, "delete", c.id)
				return errors.Join(err, logged(append(early, "poststart", "poststop", "poststop2")...))
			},
			declared: lenient("runs no poststop hook after one that failed"),
		},
		{
			name: "config.md#posix-platform-hooks/poststop-status", says: "poststop hooks are given the status stopped",
			take: func(context.Context) error {
				got, err := state("poststop")
				return errors.Join(err, equal("status", got.Status, specs.StateStopped))
			},
		},
	}
}

func hookInTheContainersNamespace(o *oci) []step {
	return []step{
		{
			name: "config.md#posix-platform-hooks/createContainer", says: "createContainer hooks run in create after createRuntime hooks, with paths of the host, in the container's mount namespace",
			take: func(ctx context.Context) error {
				dir := o.stage.Dir
				spec := host.NewSpec("sleep", "1000")
				spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{hostHook(dir, "createRuntime")}, CreateContainer: []specs.Hook{hostHook(dir, "createContainer")}}
				bundle, err := o.bundle(spec)
				if err != nil {
					return err
				}
				if _, err := o.create(ctx, bundle); err != nil {
					return err
				}
				log, err := os.ReadFile(filepath.Join(dir, "log"))
				mount, err2 := os.ReadFile(filepath.Join(dir, "createContainer.mnt"))
				own, err3 := os.Readlink("/proc/self/ns/mnt")
				err = errors.Join(err, err2, err3, equal("the hooks that ran", string(log), "createRuntime a b\ncreateContainer a b\n"))
				if strings.TrimSpace(string(mount)) == own {
					err = errors.Join(err, errors.New("it ran in the mount namespace of the caller"))
				}
				return err
			},
		},
	}
}

func failingHooks(o *oci) []step {
	// refuse asks for a create that fails by a hook, and is undone.
	refuse := func(set func(h *specs.Hooks, failing specs.Hook), failing specs.Hook) func(context.Context) error {
		return func(ctx context.Context) error {
			spec := host.NewSpec("true")
			spec.Hooks = &specs.Hooks{}
			set(spec.Hooks, failing)
			bundle, err := o.bundle(spec)
			if err != nil {
				return err
			}
			return errors.Join(o.refused(ctx, bundle), os.RemoveAll(bundle))
		}
	}
	fails := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "cat > /dev/null; exit 3"}}
	one := 1
	prestart := func(h *specs.Hooks, f specs.Hook) { h.Prestart = []specs.Hook{f} }
	createRuntime := func(h *specs.Hooks, f specs.Hook) { h.CreateRuntime = []specs.Hook{f} }
	return []step{
		{name: "runtime.md#lifecycle/prestart-fails", says: "a prestart hook that fails makes create fail and leaves no container", take: refuse(prestart, fails)},
		{name: "runtime.md#lifecycle/createRuntime-fails", says: "a createRuntime hook that fails makes create fail and leaves no container", take: refuse(createRuntime, fails)},
		{
			name: "config.md#posix-platform-hooks/path-exists", says: "a hook whose program does not exist has failed",
			take: refuse(createRuntime, specs.Hook{Path: "/no/such/hook"}),
		},
		{
			name: "config.md#posix-platform-hooks/timeout", says: "a hook that takes longer than its timeout has failed",
			take: refuse(createRuntime, specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &one}),
		},
		{
			name: "runtime.md#lifecycle/poststop-after-a-failed-create", says: "poststop hooks run when create fails by a hook",
			take: func(ctx context.Context) error {
				marker := filepath.Join(o.stage.Dir, "poststop.json")
				return errors.Join(refuse(func(h *specs.Hooks, f specs.Hook) {
					h.CreateRuntime, h.Poststop = []specs.Hook{f}, []specs.Hook{hostHook(o.stage.Dir, "poststop")}
				}, fails)(ctx), func() error { _, err := os.Stat(marker); return err }())
			},
		},
		{
			name: "runtime.md#lifecycle/startContainer-fails", says: "a startContainer hook that fails keeps the program from running and stops the container",
			take: func(ctx context.Context) error {
				spec := host.NewSpec("sh", "-c", "echo x > /ran; exec sleep 1000")
				spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/false", Args: []string{"false"}}}}
				bundle, err := o.bundle(spec)
				if err != nil {
					return err
				}
				c, err := o.create(ctx, bundle)
				if err != nil {
					return err
				}
				// Whether start says it is left open: runc's has returned before the hook runs.
				if _, err := o.cli(ctx, "start", c.id); err != nil {
					return err
				}
				return errors.Join(c.becomes(ctx, specs.StateStopped), absent(filepath.Join(bundle, "rootfs/ran")))
			},
		},
		{
			name: "runtime.md#lifecycle/poststart-fails", says: "a poststart hook that fails makes start fail and stops the container",
			take: func(ctx context.Context) error {
				spec := host.NewSpec("sleep", "1000")
				spec.Version = "1.3.0" // from 1.0.2 to 1.2.1 it was a warning
				spec.Hooks = &specs.Hooks{Poststart: []specs.Hook{fails}}
				bundle, err := o.bundle(spec)
				if err != nil {
					return err
				}
				c, err := o.create(ctx, bundle)
				if err != nil {
					return err
				}
				return errors.Join(o.fails(ctx, "start", c.id), c.becomes(ctx, specs.StateStopped))
			},
			declared: lenient("runs poststart hooks in create already, which then fails"),
		},
	}
}
