// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/hypervisor"
)

// recordTime bounds the wait until the end of a VM, which has happened, is told
// by its driver and recorded.
const recordTime = 5 * time.Second

// join makes c one of those who need the VM. It is false when the VM is about
// to end.
func (s *sandbox) join(c *container) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.members[c.key] = c
	return true
}

// leave is the reverse of join. It is true for the last one, which has to end
// the VM: nobody can join any more.
func (s *sandbox) leave(key string) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.members, key)
	if len(s.members) == 0 {
		s.closing = true
	}
	return s.closing
}

// ending tells whether the VM has been ended, or has ended, so that nobody can join it.
func (s *sandbox) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func (s *sandbox) memberList() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.members))
}

// watchVM waits for the end of the VM and tells everyone who depends on it.
func (s *sandbox) watchVM(vm hypervisor.VM, died context.CancelFunc) {
	defer died()
	select {
	case <-vm.Done():
	case <-s.w.stopping:
		return // the VM lives on; the next worker adopts it
	}
	died()
	s.w.budget.gaveBack()
	if s.outlived(vm) {
		return
	}
	s.endLinks()
	s.mu.Lock()
	s.closing = true
	if s.rec.EndReason == "" {
		s.rec.EndReason = vm.ExitReason()
	}
	reason := s.rec.EndReason
	s.mu.Unlock()
	s.router.Gone(exitVMGone, reason)
	ctx := context.Background()
	if err := s.update(ctx, func(rec *vmv1.Sandbox) { rec.State = "stopped" }); err != nil {
		s.w.log.Warn("sandbox record not written", "sandbox", s.id, "error", err)
	}
	s.w.event(ctx, "sandbox", s.id, "stopped", map[string]string{"reason": reason})
	close(s.over)
	s.w.tasks.Go(s.network.detach)
}

// kill ends the VM, keeping why in the record.
func (s *sandbox) kill(ctx context.Context, reason string) error {
	defer s.endTrial(false) // after closing is set: no other VM is wanted any more
	vm := s.machine()
	ran := vm != nil && !processGone(vm)
	s.mu.Lock()
	s.closing = true
	if ran && s.rec.EndReason == "" { // one that died by itself keeps its own reason
		s.rec.EndReason = reason
	}
	s.mu.Unlock()
	if vm == nil {
		return nil
	}
	// Bounded, and not by a caller who has given up: what must die dies.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	return vm.Kill(ctx)
}

// machine is the VM, nil before it was started and when it was not found again.
func (s *sandbox) machine() hypervisor.VM {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vm
}

// living is the VM while it runs, else nil.
func (s *sandbox) living() hypervisor.VM {
	vm := s.machine()
	if vm == nil {
		return nil
	}
	select {
	case <-vm.Done():
		return nil
	default:
		return vm
	}
}

// alive tells whether the VM runs.
func (s *sandbox) alive() bool { return s.living() != nil }

// stopped tells whether the VM has run and does no more.
func (s *sandbox) stopped() bool {
	s.mu.Lock()
	state := s.rec.State
	s.mu.Unlock()
	return state == "stopped" || s.machine() != nil && !s.alive()
}

// deathReason tells why the VM has ended, and is empty while it runs. The relays
// of a dead VM end by themselves, often before its driver has told of its end:
// then that is waited for, or the VM's death would be taken for the relay's.
func (s *sandbox) deathReason(ctx context.Context) string {
	if vm := s.machine(); vm != nil {
		if !processGone(vm) {
			return ""
		}
		ctx, cancel := context.WithTimeout(ctx, recordTime)
		defer cancel()
		select {
		case <-s.over:
		case <-s.w.stopping:
		case <-ctx.Done():
		}
	}
	if reason := s.record().EndReason; reason != "" {
		return reason
	}
	return "its VM ended"
}

// processGone tells whether the VM's process has ended, also before its driver
// has seen it.
func processGone(vm hypervisor.VM) bool {
	pidfd, err := vm.Pidfd()
	if err == nil {
		pidfd.Close()
	}
	return errors.Is(err, hypervisor.ErrGone)
}

// forget takes a removed container off the record.
func (s *sandbox) forget(ctx context.Context, key string) error {
	return s.update(ctx, func(rec *vmv1.Sandbox) {
		rec.Containers = slices.DeleteFunc(rec.Containers, func(k string) bool { return k == key })
	})
}

// remove takes away the sandbox whose last container was removed: what is left
// of its VM, and its directory. The directory stays when the VM does, so that the
// next start of the worker finds both.
func (s *sandbox) remove(ctx context.Context) error {
	if err := s.kill(ctx, "its last container was removed"); err != nil {
		return fmt.Errorf("end vm %s: %w", s.id, err)
	}
	s.endLinks()
	if s.machine() != nil { // its last event comes before ours
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
		defer cancel()
		select {
		case <-s.over:
		case <-s.w.stopping:
		case <-wait.Done():
		}
	}
	s.awaitDetached(ctx)
	s.router.Close()
	if err := s.removeCgroup(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.removed = true
	err := s.w.store.removeSandbox(ctx, s.id)
	s.mu.Unlock()
	s.w.event(ctx, "sandbox", s.id, "removed", nil)
	return err
}

// awaitDetached waits until nothing of a VM that has ended is left in its network
// namespace, as long as the net service may take for that.
func (s *sandbox) awaitDetached(ctx context.Context) {
	if s.machine() != nil && s.alive() {
		return // it could not be ended
	}
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	select {
	case <-s.network.gone:
	case <-s.w.stopping:
	case <-wait.Done():
	}
}

// cgroupFile describes the cgroup of a VM that has outlived the container in
// whose cgroup it was booted.
func (s *sandbox) cgroupFile() string {
	return filepath.Join(s.w.store.sandboxDir(s.id), cgroupPrefix+"vm.json")
}

func (s *sandbox) removeCgroup(ctx context.Context) error {
	cgroup, err := hostcgroup.Load(s.cgroupFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return cgroup.Destroy(ctx)
}

// qemuPidfd is a descriptor of the VM's process, for relays to hold.
func (s *sandbox) qemuPidfd() (*os.File, error) {
	vm := s.machine()
	if vm == nil {
		return nil, fmt.Errorf("sandbox %s has no VM", s.id)
	}
	return vm.Pidfd()
}

// release lets go of a VM that lives on.
func (s *sandbox) release() {
	s.endLinks()
	s.router.Close()
	if vm := s.machine(); vm != nil {
		vm.Release()
	}
}
