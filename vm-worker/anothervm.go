// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bulkhead/bus"
	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/hypervisor"
)

// A VM may end by itself while its first container is made in it: the host's kernel has taken its memory, QEMU or the guest's
// kernel has crashed. Until the guest has answered that the container is there, no program of it has run, and what was done is in
// the VM or can be done again. So the VM stays on trial until then, and another one takes its place, once: one that boots, which
// has nothing in common with the first but what the container asks for. What fails while the VM lives is the container's own.

// fadeTime is how long a VM of which a part has gone silent may take to be seen dead.
const fadeTime = 500 * time.Millisecond

// makeInVM makes the container in its VM, or in another one.
func (c *container) makeInVM(ctx context.Context, p *plan, cg *hostcgroup.Cgroup, files *handed) error {
	s := c.sb
	err := c.makeOnce(ctx, p, files)
	if vm := s.machine(); err != nil && s.onTrial() && s.lost(ctx, vm, err) {
		first := s.errLost(vm)
		if err = c.takeAnother(ctx, p, cg, files, vm); err != nil {
			return fmt.Errorf("%w; another VM could not take its place: %w", first, err)
		}
		err = c.makeOnce(ctx, p, files)
		if vm := s.machine(); err != nil && s.lost(ctx, vm, err) {
			return fmt.Errorf("%w; so had the VM before it: %s", s.errLost(vm), printable(first.Error(), maxFault))
		}
	}
	if err != nil {
		return err
	}
	s.endTrial(false) // from here on the container has a process, and the VM's end is its own
	return nil
}

// makeOnce gives the VM what the container needs and has the guest make it.
func (c *container) makeOnce(ctx context.Context, p *plan, files *handed) error {
	s := c.sb
	if c.owns() {
		began := time.Now()
		if err := s.network.sync(ctx); err != nil {
			return err
		}
		s.phase("network", began)
	}
	if err := c.attachMounts(ctx, p, files); err != nil {
		return err
	}
	if err := s.attachShare(ctx, p); err != nil {
		return err
	}
	if err := c.attachDisks(ctx, p, files); err != nil {
		return err
	}
	if err := c.mirrorMounts(ctx); err != nil {
		return err
	}
	began := time.Now()
	if err := s.agentCreate(ctx, c.rec, p); err != nil {
		return err
	}
	s.phase("container_create", began)
	if c.owns() && processGone(s.machine()) { // what it answered was its last
		return errVMEnded(s.id)
	}
	return nil
}

// lost tells whether a step failed because the VM has ended by itself: nobody has ended it, nor given the create up. The end of
// its process is seen a moment after that of its connections.
func (s *sandbox) lost(ctx context.Context, vm hypervisor.VM, err error) bool {
	reason := bus.ReasonOf(err)
	if ctx.Err() != nil || vm == nil || saidByGuest(err) || reason == bus.InvalidArgument || reason == bus.FailedPrecondition {
		return false
	}
	return (hasEnded(ctx, vm, fadeTime) || processGone(vm) && hasEnded(ctx, vm, recordTime)) && !s.ending() && ctx.Err() == nil
}

// hasEnded tells whether the VM has ended, or does within limit.
func hasEnded(ctx context.Context, vm hypervisor.VM, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-vm.Done():
		return true
	case <-ctx.Done():
		return false
	}
}

// endOfVM is why what follows the making of the container failed, if its VM has ended: its relay ends with it, which must not
// be taken for the caller's end.
func (c *container) endOfVM() error {
	vm := c.sb.machine()
	if !c.owns() || vm == nil || !processGone(vm) || !hasEnded(context.Background(), vm, recordTime) {
		return nil
	}
	return c.sb.errLost(vm)
}

// saidByGuest tells whether an error is the agent's answer: then it is about the container.
func saidByGuest(err error) bool {
	var told *bus.Error
	return errors.As(err, &told) && told.Metadata["from"] == "guest"
}

// errVMLost is the end of a VM that had no container yet.
var errVMLost = errors.New("ended before its container was created")

// errLost says how a VM ended that had no container yet, and what its guest said last.
func (s *sandbox) errLost(vm hypervisor.VM) error {
	words := ""
	if tail := vm.ConsoleTail(consoleWords); tail != "" {
		words = "; last words of the guest's console: " + tail
	}
	return bus.Errorf(bus.Unavailable, "the %s VM %s %w: %s%s", s.origin(), s.id, errVMLost, vm.ExitReason(), words)
}

// takeAnother undoes what was done in a VM that has ended, and has another take its place. Its network cards, disks and
// channels went with it; the sandbox's record, its network's attachment and the container's cgroup serve the next.
func (c *container) takeAnother(ctx context.Context, p *plan, cg *hostcgroup.Cgroup, files *handed, dead hypervisor.VM) error {
	s, reason := c.sb, dead.ExitReason()
	if err := files.takeBack(ctx); err != nil {
		return err
	}
	p.setback = fmt.Errorf("the %s VM before it ended while its container was made: %s", s.origin(), printable(reason, maxFault))
	p.from, p.whyBoot = nil, p.setback
	c.w.log.Warn("a VM ended while its container was made; another takes its place", "sandbox", s.id, "container", c.rec.Ref.Id, "origin", s.origin(), "reason", reason)
	s.tellReplaced(ctx, reason)
	if err := s.replace(ctx); err != nil {
		return err
	}
	if s.ending() { // it was ended meanwhile
		return errVMEnded(s.id)
	}
	s.network.lost()
	return s.come(ctx, p, cg)
}

// tellReplaced tells that the VM has failed, and that another takes its place.
func (s *sandbox) tellReplaced(ctx context.Context, why string) {
	s.w.event(ctx, "sandbox", s.id, "replaced", map[string]string{"origin": s.origin(), "reason": printable(why, maxFault)})
}

// lost forgets what a VM had of the network that is no more.
func (n *network) lost() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.applied = nil
}
