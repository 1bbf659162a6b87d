// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
	"bulkhead/runtime-frontend/relay"
	"bulkhead/runtime-frontend/shadow"
)

// hostProcess is the relay, which stands for a container process on the host, as
// commands need it.
type hostProcess interface {
	// Identity is what the worker and callers know it by.
	Identity() *vmv1.Relay
	// SendConsole sends the terminal's master to the console socket, if there is one.
	SendConsole() error
	// Commit lets it live on when this command ends.
	Commit() error
	// Kill ends it and waits for its end.
	Kill() error
	// Wait waits for its end, moving the bytes of a terminal in the foreground
	// meanwhile, and gives its exit status, 128+n for signal n.
	Wait(ctx context.Context) (int, error)
}

// startRelay starts the real one. The command line's tests put their own in its place.
type startRelay func(ctx context.Context, spec shadow.Spec) (hostProcess, error)

func startShadow(ctx context.Context, spec shadow.Spec) (hostProcess, error) {
	var err error
	if spec.Binary, err = relayBinary(); err != nil {
		return nil, err
	}
	r, err := shadow.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &shadowRelay{relay: r, spec: spec, in: os.Stdin, out: os.Stdout}, nil
}

// shadowRelay is the real one.
type shadowRelay struct {
	relay   *shadow.Relay
	spec    shadow.Spec
	in, out *os.File
}

func (r *shadowRelay) Identity() *vmv1.Relay {
	return &vmv1.Relay{Pid: int32(r.relay.PID), StartTime: r.relay.StartTime, Socket: r.relay.Socket}
}

func (r *shadowRelay) SendConsole() error {
	if r.spec.Terminal == nil || r.spec.Terminal.Foreground {
		return nil
	}
	return r.relay.SendConsole()
}

func (r *shadowRelay) Commit() error { return r.relay.Commit() }

func (r *shadowRelay) Kill() error { return r.relay.Kill() }

// drainTime bounds the writing out of what a terminal still holds when its
// relay is gone.
const drainTime = 5 * time.Second

func (r *shadowRelay) Wait(ctx context.Context) (int, error) {
	if r.spec.Terminal == nil || !r.spec.Terminal.Foreground {
		return r.relay.Wait()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	moved := make(chan error, 1)
	go func() { moved <- r.relay.Proxy(ctx, r.in, r.out) }()
	status, err := r.relay.Wait()
	late := time.AfterFunc(drainTime, cancel)
	defer late.Stop()
	if moveErr := <-moved; err == nil && moveErr != nil {
		err = fmt.Errorf("moving the terminal's bytes: %w", moveErr)
	}
	return status, err
}

// initSpec is the shadow of a container: namespaces and root file system of its own.
func initSpec(inv *invocation, runDir, token string, b *bundle.Bundle, opts launchOptions) shadow.Spec {
	spec := commonSpec(inv, runDir, token, b.Spec.Process, opts)
	for _, ns := range b.Spec.Linux.Namespaces {
		if bundle.InGuestOnly(ns.Type) {
			continue
		}
		spec.Namespaces = append(spec.Namespaces, shadow.Namespace{Type: string(ns.Type), Path: ns.Path})
	}
	spec.Rootfs = b.Rootfs
	spec.ReadonlyRootfs = b.Spec.Root.Readonly
	for _, bind := range b.Binds {
		spec.Mounts = append(spec.Mounts, relay.Mount{Source: bind.Source, Destination: bind.Destination, ReadOnly: bind.ReadOnly})
	}
	spec.Hostname = b.Spec.Hostname
	return spec
}

// execSpec is the shadow of a further process: it joins the namespaces of the
// container's, and so ends with it.
func execSpec(inv *invocation, runDir, token string, process *specs.Process, init *vmv1.Relay, opts launchOptions) shadow.Spec {
	spec := commonSpec(inv, runDir, token, process, opts)
	spec.JoinPID, spec.JoinStartTime = int(init.GetPid()), init.GetStartTime()
	return spec
}

func commonSpec(inv *invocation, runDir, token string, process *specs.Process, opts launchOptions) shadow.Spec {
	spec := shadow.Spec{
		Args:     []string{relayName}, // of a container that has no process to show
		RelayDir: filepath.Join(runDir, "relay"),
		Token:    token,
		Stdin:    inv.std.In, Stdout: inv.std.Out, Stderr: inv.std.Err,
	}
	if process == nil {
		return spec
	}
	spec.Args = process.Args
	spec.OOMScoreAdj = process.OOMScoreAdj
	if process.Terminal {
		spec.Terminal = &shadow.Terminal{ConsoleSocket: opts.consoleSocket, Foreground: opts.foreground}
		if size := process.ConsoleSize; size != nil {
			spec.Terminal.Width, spec.Terminal.Height = uint16(min(size.Width, 1<<16-1)), uint16(min(size.Height, 1<<16-1))
		}
	}
	return spec
}

const (
	relayName    = "bulkhead-relay"
	packagedPath = "/usr/libexec/bulkhead"
)

// relayBinary finds the relay: beside this program, where packages put it, or
// by PATH, which engines often do not set.
func relayBinary() (string, error) {
	var beside string
	if self, err := os.Executable(); err == nil {
		beside = filepath.Dir(self)
	}
	for _, dir := range []string{beside, packagedPath} {
		path := filepath.Join(dir, relayName)
		if info, err := os.Stat(path); dir != "" && err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	if path, err := exec.LookPath(relayName); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("the program %s is neither beside this one, nor in %s, nor in PATH: install it there", relayName, packagedPath)
}
