// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
	"bulkhead/runtime-frontend/shadow"
)

// relay is the host process that stands for a container process, as commands
// need it.
type relay interface {
	// Identity is what the worker and callers know it by.
	Identity() *vmv1.Relay
	// SendConsole sends the terminal's master to the console socket, if there is one.
	SendConsole(ctx context.Context) error
	// Commit lets it live on when this command ends.
	Commit() error
	// Kill ends it and waits for its end.
	Kill()
	// Wait waits for its end and gives its exit status, 128+n for signal n.
	Wait(ctx context.Context) (int, error)
}

// startRelay starts the real one. The command line's tests put their own in its place.
type startRelay func(ctx context.Context, spec shadow.Spec) (relay, error)

func startShadow(ctx context.Context, spec shadow.Spec) (relay, error) {
	var err error
	if spec.Binary, err = relayBinary(); err != nil {
		return nil, err
	}
	r, err := shadow.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return shadowRelay{r}, nil
}

type shadowRelay struct{ *shadow.Relay }

func (r shadowRelay) Identity() *vmv1.Relay {
	return &vmv1.Relay{Pid: int32(r.PID), StartTime: r.StartTime, Socket: r.Socket}
}

// initSpec is the shadow of a container: namespaces and root file system of its own.
func initSpec(inv *invocation, runDir string, b *bundle.Bundle, opts launchOptions) shadow.Spec {
	spec := commonSpec(inv, runDir, b.Spec.Process, opts)
	spec.Namespaces = b.Spec.Linux.Namespaces
	spec.Rootfs = b.Rootfs
	spec.ReadonlyRootfs = b.Spec.Root.Readonly
	spec.Hostname = b.Spec.Hostname
	return spec
}

// execSpec is the shadow of a further process: it joins the namespaces of the
// container's, and so ends with it.
func execSpec(inv *invocation, runDir string, process *specs.Process, init *vmv1.Relay, opts launchOptions) shadow.Spec {
	spec := commonSpec(inv, runDir, process, opts)
	spec.JoinPID = int(init.GetPid())
	return spec
}

func commonSpec(inv *invocation, runDir string, process *specs.Process, opts launchOptions) shadow.Spec {
	spec := shadow.Spec{
		RelayDir: filepath.Join(runDir, "relay"),
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
