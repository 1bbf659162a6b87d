// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
	"bulkhead/runtime-frontend/hooks"
	"bulkhead/runtime-frontend/shadow"
)

// launchOptions are what create, run and exec are told about the host side of
// a process.
type launchOptions struct {
	bundle        string
	pidFile       string
	consoleSocket string
	pidfdSocket   string
	foreground    bool
	// dieWithCaller: the process ends when this command is killed, as nobody
	// else would ever know of it.
	dieWithCaller bool
}

// newLaunchOptions reads the flags that create, run and exec share.
func newLaunchOptions(inv *invocation) (launchOptions, error) {
	opts := launchOptions{bundle: inv.String("bundle"), consoleSocket: inv.String("console-socket"), pidfdSocket: inv.String("pidfd-socket")}
	if n := inv.Int("preserve-fds"); n != 0 {
		return opts, fmt.Errorf("--preserve-fds %d: open files of the host cannot be passed into a virtual machine; bind-mount what the container needs", n)
	}
	if os.Getenv("LISTEN_FDS") != "" && os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		return opts, errors.New("LISTEN_FDS is set for this process: sockets of the host cannot be passed into a virtual machine; let the container open its own")
	}
	var err error
	opts.pidFile, err = absolute(inv.String("pid-file"))
	return opts, err
}

// checkTerminal holds the rule for consoles: a detached terminal needs a socket to
// send its master to, and nothing else has use for one.
func (o launchOptions) checkTerminal(terminal bool) error {
	switch {
	case terminal && !o.foreground && o.consoleSocket == "":
		return errors.New("cannot allocate tty if bulkhead will detach without setting console socket")
	case o.consoleSocket != "" && (!terminal || o.foreground):
		return errors.New("cannot use console socket if bulkhead will not detach or allocate tty")
	}
	return nil
}

// create is the way of docs/architecture.md from a bundle to a created
// container. Everything it did is undone when a step fails.
func create(ctx context.Context, inv *invocation, ref *vmv1.ContainerRef, opts launchOptions) (_ hostProcess, retErr error) {
	judged, err := inv.bundleOptions()
	if err != nil {
		return nil, err
	}
	b, err := bundle.Load(opts.bundle, judged)
	if err != nil {
		return nil, err
	}
	if err := opts.checkTerminal(b.Spec.Process != nil && b.Spec.Process.Terminal); err != nil {
		return nil, err
	}
	cfg, err := inv.settings()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, createDeadline(cfg.VM.BootTimeout.Duration))
	defer cancel()
	operation := bus.NewOperationID()
	ctx = bus.WithOperation(ctx, operation)
	// The worker would refuse the id as well, but only after the hooks had touched
	// what belongs to the container that has it.
	if _, err := lookUp(ctx, inv, ref); err == nil {
		return nil, errors.New("container with given ID already exists")
	} else if bus.ReasonOf(err) != bus.NotFound {
		return nil, err
	}

	if err := checkJoined(ctx, inv, ref, b); err != nil {
		return nil, err
	}

	undo := undoList{warn: inv.reporter().Debug}
	defer func() {
		if retErr != nil {
			undo.run(ctx)
		}
	}()

	state := hookState(ref, b)
	hooked := false // poststop belongs to a create whose hooks have begun
	undo.add(func(ctx context.Context) error {
		if !hooked {
			return nil
		}
		state.Status, state.Pid = "stopped", 0
		return hooks.RunAll(ctx, "poststop", b.Dir, b.Spec.Hooks.Poststop, state)
	})

	spec := initSpec(inv, cfg.Host.RunDir, operation, b, opts)
	var hookErr error
	if hasCreateHooks(b.Spec.Hooks) {
		spec.BeforeRoot = func(pid int) error {
			hooked = true
			state.Pid = pid
			hookErr = runCreateHooks(ctx, b, state)
			return hookErr
		}
	}
	relay, err := inv.startRelay(ctx, spec)
	if hookErr != nil {
		return nil, hookErr
	}
	if err != nil {
		return nil, fmt.Errorf("starting the container's host process: %w", err)
	}
	undo.add(func(context.Context) error { return relay.Kill() })
	hooked = b.Spec.Hooks != nil

	mounts, devices, err := handOver(ctx, filepath.Join(cfg.Host.RunDir, handoverSocket), operation, b)
	if err != nil {
		return nil, err
	}
	undo.add(func(ctx context.Context) error { return deleteOwn(ctx, inv, ref, operation) })
	_, err = call[vmv1.CreateReply](ctx, inv, "create", &vmv1.CreateRequest{
		Ref: ref, Bundle: b.Dir, Rootfs: b.Rootfs, Config: string(b.Config),
		Handover: operation, Mounts: mounts, Relay: relay.Identity(),
		SystemdCgroup: inv.systemdCgroup, Owner: owner(), Joined: joinedNamespaces(b), Devices: devices,
	})
	if err != nil {
		return nil, interrupted(ctx, err)
	}
	return relay, finish(relay, opts)
}

// finish tells the caller about a process that is set up: its terminal, its
// pidfd and, last, its pid. After that the relay lives on without us.
func finish(relay hostProcess, opts launchOptions) error {
	if err := relay.SendConsole(); err != nil {
		return fmt.Errorf("sending the terminal to %q: %w", opts.consoleSocket, err)
	}
	pid := int(relay.Identity().GetPid())
	if opts.pidfdSocket != "" {
		if err := sendPidfd(opts.pidfdSocket, pid); err != nil {
			return fmt.Errorf("sending the pidfd to %q: %w", opts.pidfdSocket, err)
		}
	}
	if opts.pidFile != "" {
		if err := writePidFile(opts.pidFile, pid); err != nil {
			return err
		}
	}
	if opts.dieWithCaller {
		return nil
	}
	if err := relay.Commit(); err != nil {
		if opts.pidFile != "" {
			os.Remove(opts.pidFile)
		}
		return fmt.Errorf("letting go of the container's host process: %w", err)
	}
	return nil
}

// deleteOwn removes the record of a failed create, if there is one and it is
// that create's: after a timeout nobody knows, and the id may be another's by now.
func deleteOwn(ctx context.Context, inv *invocation, ref *vmv1.ContainerRef, operation string) error {
	record, err := lookUp(ctx, inv, ref)
	switch {
	case bus.ReasonOf(err) == bus.NotFound:
		return nil
	case err != nil:
		return err
	case record.GetOperationId() != operation:
		return nil
	}
	// An operation of its own: the worker remembers the outcome of the create's.
	_, err = call[vmv1.DeleteReply](bus.WithOperation(ctx, bus.NewOperationID()), inv, "delete", &vmv1.DeleteRequest{Ref: ref, Force: true})
	if bus.ReasonOf(err) == bus.NotFound {
		return nil
	}
	return err
}

func hasCreateHooks(h *specs.Hooks) bool {
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0
}

// runCreateHooks runs the hooks that belong between the making of a container's namespaces and
// mounts and the change of its root (runtime-spec, config.md#posix-platform-hooks).
func runCreateHooks(ctx context.Context, b *bundle.Bundle, state hooks.State) error {
	if err := hooks.Run(ctx, "prestart", b.Dir, b.Spec.Hooks.Prestart, state); err != nil {
		return err
	}
	if err := hooks.Run(ctx, "createRuntime", b.Dir, b.Spec.Hooks.CreateRuntime, state); err != nil {
		return err
	}
	if len(b.Spec.Hooks.CreateContainer) == 0 {
		return nil
	}
	return shadow.Inside(state.Pid, func() error {
		return hooks.Run(ctx, "createContainer", b.Dir, b.Spec.Hooks.CreateContainer, state)
	})
}

// hookState is what hooks read: the state of a container that is being made.
func hookState(ref *vmv1.ContainerRef, b *bundle.Bundle) hooks.State {
	state := hooks.State{Rootfs: b.Rootfs}
	state.Version = b.Spec.Version
	state.ID = ref.GetId()
	state.Status = "creating"
	state.Bundle = b.Dir
	state.Annotations = b.Spec.Annotations
	return state
}

// owner names the caller, for "list".
func owner() string {
	uid := strconv.Itoa(os.Getuid())
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return "#" + uid
}
