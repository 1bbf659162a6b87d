// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/hypervisor"
)

// resizeTime bounds a change of a VM's size, the guest's part in it included.
const resizeTime = 20 * time.Second

// lockSize takes the lock under which the VM's size is decided and changed: the
// members of a pod are updated, come and go independently of each other.
func (s *sandbox) lockSize(ctx context.Context) error {
	select {
	case s.sizing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return bus.Errorf(bus.DeadlineExceeded, "the size of VM %s is being changed by another command: %w", s.id, ctx.Err())
	}
}

func (s *sandbox) unlockSize() { <-s.sizing }

// size is what the VM has: the processors its guest runs on, and its memory.
func (s *sandbox) size() hypervisor.Size {
	rec := s.record()
	return hypervisor.Size{VCPUs: rec.Vcpus, MemoryBytes: rec.MemoryBytes}
}

// wanted is what the VM's containers need together, when c has the limits next.
// A nil c is nobody.
func (s *sandbox) wanted(c *container, next *specs.LinuxResources) hypervisor.Size {
	var demands []demand
	for _, m := range s.memberList() {
		r := m.resources()
		if m == c {
			r = next
		}
		demands = append(demands, demandOf(r, m.rec.Annotations))
	}
	return sizeOf(demands, s.w.cfg)
}

// resources are the container's recorded limits.
func (c *container) resources() *specs.LinuxResources {
	r, err := parseResources(c.snapshot().Resources)
	if err != nil {
		c.w.log.Error("recorded limits not understood", "container", c.rec.Ref.Id, "error", err)
		return &specs.LinuxResources{}
	}
	return r
}

func larger(a, b hypervisor.Size) hypervisor.Size {
	return hypervisor.Size{VCPUs: max(a.VCPUs, b.VCPUs), MemoryBytes: max(a.MemoryBytes, b.MemoryBytes)}
}

// resize changes the VM and has its guest follow. What the VM cannot give back
// stays: its record tells what it has. The caller holds the lock of the size.
func (s *sandbox) resize(ctx context.Context, to hypervisor.Size) error {
	vm := s.living()
	if vm == nil {
		return errVMEnded(s.id)
	}
	if to == s.size() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, resizeTime)
	defer cancel()
	err := vm.Resize(ctx, to)
	if errors.Is(err, hypervisor.ErrNoRoom) {
		return bus.Errorf(bus.ResourceExhausted, "%w: create the container again with these limits", err)
	}
	if err != nil {
		return fmt.Errorf("change the size of the VM: %w", err)
	}
	if err := s.agentResize(ctx, to.VCPUs); err != nil {
		return fmt.Errorf("change the size of the VM: %w", err)
	}
	err = s.update(ctx, func(rec *vmv1.Sandbox) {
		rec.Vcpus, rec.MemoryBytes = to.VCPUs, vm.Record().MemoryBytes
	})
	if err != nil {
		return err
	}
	now := s.size()
	s.w.event(ctx, "sandbox", s.id, "resized", map[string]string{"vcpus": itoa(now.VCPUs), "memory_mib": itoa(uint32(now.MemoryBytes >> 20))})
	return nil
}

// fit gives the VM what its containers need after one has come or gone.
func (s *sandbox) fit(ctx context.Context, undo *saga) error {
	if err := s.lockSize(ctx); err != nil {
		return err
	}
	defer s.unlockSize()
	before, after := s.size(), s.wanted(nil, nil)
	if before == after {
		return nil
	}
	undo.did("change the size of VM "+s.id, func(ctx context.Context) error {
		if !s.alive() {
			return nil
		}
		return errors.Join(s.resize(ctx, before), s.limitOwner(before))
	})
	if err := s.limitOwner(larger(before, after)); err != nil {
		return err
	}
	if err := s.resize(ctx, after); err != nil {
		return err
	}
	return s.limitOwner(s.size())
}

// owner is the container in whose host cgroup the VM is: the one it was started
// for, also when that has ended. It is nil when that one is no more.
func (s *sandbox) owner() *container {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for _, c := range s.w.containers {
		if c.sb == s && c.owns() {
			return c
		}
	}
	return nil
}

// limitOwner has the host cgroup that the VM is in follow its size: the owner's, or
// the one that was made when the owner was removed before others of its pod.
func (s *sandbox) limitOwner(vm hypervisor.Size) error {
	if owner := s.owner(); owner != nil {
		return owner.limitHost(owner.resources(), vm)
	}
	heir, err := hostcgroup.Load(s.cgroupFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return heir.ResizeMemory(int64(vm.MemoryBytes)+hostcgroup.DefaultOverhead.MemoryBytes, s.cgroupFile())
}

func (c *container) owns() bool { return c.rec.Channel == firstChannel }

// limitHost sets the limits of the container's host cgroup, for a VM of a size.
func (c *container) limitHost(r *specs.LinuxResources, vm hypervisor.Size) error {
	cg := c.hostCgroup()
	if cg == nil {
		return nil // it was not found again, which was said then
	}
	over := c.w.overhead()
	if c.owns() {
		r, over = c.sb.sharedQuota(c, r), c.w.vmOverhead(r, vm)
	}
	return cg.Update(r, over, c.cgroupFile())
}

// vmOverhead is what the host cgroup with the VM in it allows beside the
// container's limits. The guest may have touched all of its memory, also when its containers
// may no more use so much.
func (w *Worker) vmOverhead(r *specs.LinuxResources, vm hypervisor.Size) hostcgroup.Overhead {
	over := w.overhead()
	if r != nil && r.Memory != nil && value(r.Memory.Limit) > 0 {
		limit := min(uint64(*r.Memory.Limit), vm.MemoryBytes)
		over.MemoryBytes = hostcgroup.DefaultOverhead.MemoryBytes + int64(vm.MemoryBytes-limit)
	}
	return over
}

// sharedQuota is r with the CPU quota that all containers of the VM have together,
// or none where one of them has none: the VM works for all of them.
func (s *sandbox) sharedQuota(owner *container, r *specs.LinuxResources) *specs.LinuxResources {
	if millicpus(r.CPU) == 0 {
		return r
	}
	var all uint64
	members := s.memberList()
	for _, m := range members {
		mine := r
		if m != owner {
			mine = m.resources()
		}
		d := demandOf(mine, m.rec.Annotations)
		if d.millicpus == 0 && !d.idle {
			all = 0
			break
		}
		all += d.millicpus
	}
	if len(members) < 2 {
		return r
	}
	shared, cpu := *r, *r.CPU
	cpu.Quota = new(int64(-1))
	if all > 0 {
		period := value(cpu.Period)
		if period == 0 {
			period = defaultCPUPeriod
		}
		cpu.Quota = new(int64(all * period / 1000))
	}
	shared.CPU = &cpu
	return &shared
}
