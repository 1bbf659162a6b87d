// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"cmp"
	"fmt"
	"slices"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	ksmv1 "bulkhead/proto/ksm/v1"
)

// sentence says what is done now, and why.
func (c *controller) sentence() string {
	k := c.last.kernel
	switch {
	case k == nil:
		return "the host has not been looked at yet"
	case !k.Available:
		return "this kernel has no same-page merging; nothing to do"
	}
	saved := fmt.Sprintf("%d MiB are saved on this host", c.last.seen.merged*pageSize>>20)
	switch {
	case c.governor.yielded != "":
		return c.governor.yielded + "; the kernel is left alone until a mode is set; " + saved
	case !c.steers():
		return fmt.Sprintf("mode %s: nothing is steered; %s", c.mode, saved)
	case c.problem != "":
		return c.problem + "; " + saved
	case c.clearing != nil:
		return "the last VM has gone, and a last pass makes the kernel forget its pages; " + saved
	case len(c.vms) == 0:
		return "no VM whose memory may be merged; the host has its own settings"
	case c.policy == nil:
		return fmt.Sprintf("mode %s is about to begin; %s", c.mode, saved)
	}
	return fmt.Sprintf("mode %s, %s: %d VMs may be merged; %s", c.mode, c.policy.phase(), len(c.vms), saved)
}

func (c *controller) detail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sentence()
}

// status reads the kernel anew and adds what is decided, and what VMs have of it, from the one behind
// after on.
func (c *controller) status(base *busv1.ServiceStatus, after string) (*ksmv1.Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, err := c.kernel.read() // under the lock: what it has is what was decided last
	if err != nil {
		return nil, err
	}
	s := &ksmv1.Status{
		Service: base.Service, Version: base.Version, Host: base.Host, Pid: base.Pid, Started: base.Started, Ready: base.Ready,
		Detail: c.sentence(), Mode: c.mode, Phase: c.phaseNow(), Steering: c.governor.steering(), Yielded: c.governor.yielded,
		Kernel: k, HostSettings: c.governor.saved.Host,
		MergedBytes: (k.PagesSharing + k.PagesShared + k.KsmZeroPages) * pageSize, SavedBytes: (k.PagesSharing + k.KsmZeroPages) * pageSize,
		KsmdCpuPercent: c.last.cpu, BudgetPercent: c.last.allowed, MemoryPressure: c.last.seen.pressure,
	}
	vms := c.list()
	first, found := slices.BinarySearchFunc(vms, after, func(v vm, name string) int { return cmp.Compare(v.sandbox, name) })
	if found {
		first++
	}
	var part bus.Part
	for _, v := range vms[first:] {
		// Files are read of what this answer holds, not of all that is left: to tell of all would cost the square of their number.
		told := c.proc.report(v, k)
		if told == nil {
			continue
		}
		if !part.Holds(told) {
			s.Next = s.Vms[len(s.Vms)-1].Sandbox
			break
		}
		s.Vms = append(s.Vms, told)
	}
	return s, nil
}
