// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	"bulkhead/bus/link"
	agentv1 "bulkhead/proto/agent/v1"
	"bulkhead/vm-worker/hypervisor"
)

// errRehearsal says that the guest could not rehearse, or has not become again what it was. It is not to be kept.
var errRehearsal = errors.New("the guest did not rehearse")

// Where the files of a rehearsal are, below the share and in the file system that is made for them.
const (
	rehearsalKey     = "rehearsal"
	rehearsalProg    = "/bin/cat"
	rehearsalHosts   = "hosts"
	rehearsalTimeout = time.Minute
)

// makeReady makes a guest ready to be continued from: it listens, and has done all that a first container makes it
// do, so that no clone does anything for the first time. It is still nobody's.
func (w *Worker) makeReady(ctx context.Context, vm hypervisor.VM) error {
	if err := awaitListening(ctx, vm); err != nil {
		return err
	}
	if err := w.rehearse(ctx, vm); err != nil {
		return fmt.Errorf("%w: %w", errRehearsal, err)
	}
	return awaitListening(ctx, vm)
}

// rehearse has the guest make, use and remove containers (agent/rehearsal) of files that it sees as it sees those of any
// container, and no longer than that.
func (w *Worker) rehearse(ctx context.Context, vm hypervisor.VM) (err error) {
	ctx, cancel := context.WithTimeout(ctx, rehearsalTimeout)
	defer cancel()
	files, err := rehearsalFiles()
	if err != nil {
		return err
	}
	defer files.Close()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		err = errors.Join(err, vm.DetachMounts(ctx, rehearsalKey))
	}()
	for _, m := range []struct {
		what string
		dir  bool
	}{{"rootfs", true}, {rehearsalHosts, false}} {
		if err := attachPart(ctx, vm, files, m.what, m.dir); err != nil {
			return err
		}
	}
	rec, size := vm.Record(), sizeOf([]demand{{}}, w.cfg)
	with := &agentv1.Rehearsal{
		Rootfs: rehearsalKey + "/rootfs", Program: rehearsalProg, File: rehearsalKey + "/" + rehearsalHosts,
		Configure: &agentv1.ConfigureRequest{
			Hostname: rehearsalKey, UnixNanos: time.Now().UnixNano(), Vcpus: size.VCPUs,
			Memory: &agentv1.Memory{
				Has: rec.MemoryBytes, Limit: size.MemoryBytes, Base: rec.BootMemoryBytes, Containers: containersPart(size.MemoryBytes, w.cfg),
			},
		},
	}
	return inSession(ctx, vm.DialCtl, func(session *link.Session) error {
		r, err := bus.AskRehearsal(session, with)
		if err == nil && r.GetError() != "" {
			err = errors.New(r.GetError())
		}
		return err
	})
}

// attachPart shows one of the files to the guest.
func attachPart(ctx context.Context, vm hypervisor.VM, files *os.File, what string, dir bool) error {
	fd, err := unix.OpenTree(int(files.Fd()), what, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("showing the guest the files of its rehearsal: open_tree %s: %w", what, err)
	}
	part := os.NewFile(uintptr(fd), what)
	defer part.Close()
	return vm.AttachMount(ctx, part, rehearsalKey+"/"+what, dir, false)
}

// rehearsalFiles makes a root file system, in memory that nobody else sees and that goes with the descriptor, and a file for engines' mounts.
func rehearsalFiles() (*os.File, error) {
	root, err := detachedMemory()
	if err != nil {
		return nil, fmt.Errorf("making the files of a rehearsal: %w", err)
	}
	at := fmt.Sprintf("/proc/self/fd/%d", root.Fd())
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc", "tmp", "root"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(at, "rootfs", d), 0o755))
	}
	hosts := []byte("127.0.0.1\tlocalhost\n")
	err = errors.Join(err,
		os.WriteFile(filepath.Join(at, "rootfs", rehearsalProg), rehearsalProgram(), 0o755),
		os.WriteFile(filepath.Join(at, "rootfs/etc/hosts"), hosts, 0o644),
		os.WriteFile(filepath.Join(at, rehearsalHosts), hosts, 0o644),
	)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("making the files of a rehearsal: %w", err)
	}
	return root, nil
}

// detachedMemory is a tmpfs that is mounted nowhere (fsopen(2), fsmount(2)).
func detachedMemory() (*os.File, error) {
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "rehearsal"), nil
}
