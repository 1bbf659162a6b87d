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

	"bulkhead/bus"
	"bulkhead/bus/link"
	agentv1 "bulkhead/proto/agent/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/share"
)

// errRehearsal says that the guest could not rehearse, or has not become again what it was. It is not to be kept.
var errRehearsal = errors.New("the guest did not rehearse")

// Where the files of a rehearsal are, below the share and in the file system that is made for them.
const (
	rehearsalKey     = "rehearsal"
	rehearsalRoot    = "rootfs"
	rehearsalProg    = "/bin/cat"
	rehearsalHosts   = "hosts"
	rehearsalTimeout = time.Minute
)

var rehearsalParts = []string{rehearsalRoot, rehearsalHosts}

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
	parts, err := rehearsalFiles()
	if err != nil {
		return err
	}
	defer closeAll(parts)
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		err = errors.Join(err, vm.DetachMounts(ctx, rehearsalKey))
	}()
	for i, what := range rehearsalParts {
		if err := vm.AttachMount(ctx, parts[i], rehearsalKey+"/"+what, what == rehearsalRoot, false); err != nil {
			return err
		}
	}
	rec, size := vm.Record(), sizeOf([]demand{{}}, w.cfg)
	with := &agentv1.Rehearsal{
		Rootfs: rehearsalKey + "/" + rehearsalRoot, Program: rehearsalProg, File: rehearsalKey + "/" + rehearsalHosts,
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

// rehearsalFiles makes a root file system, in memory that nobody else sees and that goes with the descriptors, and a
// file for engines' mounts: rehearsalParts, as detached mounts.
func rehearsalFiles() (parts []*os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("making the files of a rehearsal: %w", err)
		}
	}()
	tree, err := share.DetachedMemory()
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	at := fmt.Sprintf("/proc/self/fd/%d", tree.Fd())
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc", "tmp", "root"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(at, rehearsalRoot, d), 0o755))
	}
	hosts := []byte("127.0.0.1\tlocalhost\n")
	err = errors.Join(err,
		os.WriteFile(filepath.Join(at, rehearsalRoot, rehearsalProg), rehearsalProgram(), 0o755),
		os.WriteFile(filepath.Join(at, rehearsalRoot, "etc/hosts"), hosts, 0o644),
		os.WriteFile(filepath.Join(at, rehearsalHosts), hosts, 0o644),
	)
	if err != nil {
		return nil, err
	}
	return share.Parts(tree, rehearsalParts...)
}
