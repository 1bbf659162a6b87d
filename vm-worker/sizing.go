// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// size is what the VM's containers may use: the processors its guest runs on, and
// the memory up to which it grows when they need it.
func (s *sandbox) size() hypervisor.Size {
	rec := s.record()
	if rec.MemoryLimitBytes == 0 { // of a worker that gave all at once
		return hypervisor.Size{VCPUs: rec.Vcpus, MemoryBytes: rec.MemoryBytes}
	}
	return hypervisor.Size{VCPUs: rec.Vcpus, MemoryBytes: rec.MemoryLimitBytes}
}

// limitsOf tells the limits that containers have, or are about to have.
type limitsOf func(*container) *specs.LinuxResources

// with are the limits on record, but for c, which has next.
func with(c *container, next *specs.LinuxResources) limitsOf {
	return func(m *container) *specs.LinuxResources {
		if m == c {
			return next
		}
		return m.resources()
	}
}

// wanted is what the VM's containers need together.
func (s *sandbox) wanted(limits limitsOf) hypervisor.Size {
	var demands []demand
	for _, m := range s.memberList() {
		demands = append(demands, demandOf(limits(m), m.rec.Annotations))
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

// resize changes what the VM has of processors and may have of memory, and has its guest
// follow, which asks for memory when its containers need it and lets go what it
// has beyond the limit. The caller holds the lock of the size.
func (s *sandbox) resize(ctx context.Context, to hypervisor.Size) error {
	vm := s.living()
	if vm == nil {
		return errVMEnded(s.id)
	}
	before := s.size()
	ctx, cancel := context.WithTimeout(ctx, resizeTime)
	defer cancel()
	machine := vm.Record()
	var err error
	if room := machine.Max.MemoryBytes; to.MemoryBytes > room {
		err = fmt.Errorf("%d MiB of memory, and at most %d: %w", to.MemoryBytes>>20, room>>20, hypervisor.ErrNoRoom)
	} else {
		err = vm.Resize(ctx, hypervisor.Size{VCPUs: to.VCPUs, MemoryBytes: machine.MemoryBytes})
	}
	if errors.Is(err, hypervisor.ErrNoRoom) {
		then := "create the container again with these limits"
		if len(s.memberList()) > 1 {
			then = "give the container for which it was started higher limits, or run this one in a VM of its own"
		}
		return bus.Errorf(bus.ResourceExhausted, "%w: %s", err, then)
	}
	if err != nil {
		return fmt.Errorf("change the size of the VM: %w", err)
	}
	err = s.update(ctx, func(rec *vmv1.Sandbox) {
		rec.MemoryLimitBytes, rec.MemoryBytes = to.MemoryBytes, vm.Record().MemoryBytes
	})
	if err != nil {
		return err
	}
	if err := s.agentResize(ctx, to.VCPUs); err != nil {
		return fmt.Errorf("change the size of the VM: %w", err)
	}
	if err := s.update(ctx, func(rec *vmv1.Sandbox) { rec.Vcpus = to.VCPUs }); err != nil {
		return err
	}
	now := s.size()
	if now == before {
		return nil
	}
	s.w.event(ctx, "sandbox", s.id, "resized", map[string]string{"vcpus": itoa(now.VCPUs), "memory_mib": itoa(uint32(now.MemoryBytes >> 20))})
	return nil
}

// fit gives the VM what its containers need after one has come or gone. Its undo
// is fit again, without the one that has come: others may have come and gone meanwhile.
func (s *sandbox) fit(ctx context.Context) error {
	if err := s.lockSize(ctx); err != nil {
		return err
	}
	defer s.unlockSize()
	after := s.wanted((*container).resources)
	if err := s.limitOwner((*container).resources, larger(s.size(), after)); err != nil {
		return err
	}
	if err := s.resize(ctx, after); err != nil {
		return err
	}
	return s.limitOwner((*container).resources, s.size())
}

// refit fits the VM to those that are left in it. What it cannot give back, it keeps.
func (s *sandbox) refit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	if err := s.fit(ctx); err != nil && s.alive() {
		s.w.log.Warn("vm not made smaller", "sandbox", s.id, "error", err)
	}
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
func (s *sandbox) limitOwner(limits limitsOf, vm hypervisor.Size) error {
	vm.MemoryBytes = max(vm.MemoryBytes, s.has())
	heir, err := s.heir()
	if err != nil {
		return err
	}
	if heir != nil {
		return heir.Resize(int64(vm.MemoryBytes)+hostcgroup.DefaultOverhead.MemoryBytes, s.quotaOf(limits), s.cgroupFile())
	}
	if owner := s.owner(); owner != nil {
		return owner.limitHost(limits, vm)
	}
	return nil
}

// heir is the cgroup into which the VM has moved out of its owner's, nil as long as
// it has not.
func (s *sandbox) heir() (*hostcgroup.Cgroup, error) {
	heir, err := hostcgroup.Load(s.cgroupFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if vm := s.living(); vm == nil || !heir.Holds(vm.Record().PID) {
		return nil, nil
	}
	return heir, nil
}

func (c *container) owns() bool { return c.rec.Channel == firstChannel }

// limitHost sets the limits of the container's host cgroup, for a VM of a size.
func (c *container) limitHost(limits limitsOf, vm hypervisor.Size) error {
	cg := c.hostCgroup()
	if cg == nil {
		return nil // it was not found again, which was said then
	}
	r, over := limits(c), c.w.overhead()
	if c.owns() {
		vm.MemoryBytes = max(vm.MemoryBytes, c.sb.has())
		r, over = c.sb.sharedQuota(c, limits), c.w.vmOverhead(r, vm)
	}
	return cg.Update(r, over, c.cgroupFile())
}

// vmOverhead is what the host cgroup with the VM in it allows beside the
// container's limits. The guest may have touched all of its memory, also when its containers
// may no more use so much.
func (w *Worker) vmOverhead(r *specs.LinuxResources, vm hypervisor.Size) hostcgroup.Overhead {
	over := w.overhead()
	if limit := demandOf(r, nil).memory; limit > 0 {
		over.MemoryBytes = hostcgroup.DefaultOverhead.MemoryBytes + int64(vm.MemoryBytes-min(limit, vm.MemoryBytes))
	}
	return over
}

// sharedQuota are the owner's limits with the CPU quota that all containers of the
// VM have together, or none where one of them has none: the VM works for all of them.
func (s *sandbox) sharedQuota(owner *container, limits limitsOf) *specs.LinuxResources {
	r := limits(owner)
	members := s.memberList()
	alone := len(members) == 0 || len(members) == 1 && members[0] == owner
	if demandOf(r, nil).millicpus == 0 || alone {
		return r
	}
	shared, cpu := *r, value(r.CPU)
	shared.Unified = maps.Clone(r.Unified)
	delete(shared.Unified, "cpu.max") // the same in other words
	cpu.Quota = new(int64(-1))
	if all := s.quotaOf(limits); all > 0 {
		period := value(cpu.Period)
		if period == 0 {
			period = hostcgroup.DefaultPeriod
		}
		cpu.Quota = new(int64(all * period / 1000))
	}
	shared.CPU = &cpu
	return &shared
}

// quotaOf is the CPU quota that the VM's containers have together, in thousandths
// of a CPU; 0 where one of them has none.
func (s *sandbox) quotaOf(limits limitsOf) uint64 {
	var all uint64
	for _, m := range s.memberList() {
		d := demandOf(limits(m), m.rec.Annotations)
		if d.millicpus == 0 && !d.idle {
			return 0
		}
		all += d.millicpus
	}
	return all
}
