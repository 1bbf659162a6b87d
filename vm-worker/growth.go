// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"time"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// What a guest may ask of the host's time: wishes that come faster wait, and of those that
// wait only the last counts. Each is worth a change of the machine at most.
const (
	wishEvery = 100 * time.Millisecond
	wishBurst = 10
)

// listenMemory follows the guest's word on how much memory its containers need,
// until ctx ends.
func (s *sandbox) listenMemory(ctx context.Context) {
	wishes := make(chan wish, 1)
	sub, err := bus.OnAgentEvent(s.w.conn, s.id, "memory", func(m *agentv1.MemoryWanted) {
		select { // the callbacks of a subscription run one after the other
		case <-wishes:
		default:
		}
		wishes <- wish{bytes: m.Bytes, number: m.Number}
	})
	if err != nil {
		s.w.log.Error("not listening for the guest's need of memory", "sandbox", s.id, "error", err)
		return
	}
	s.unsubscribeAtEnd(ctx, sub)
	s.links.Go(func() {
		tokens, last := wishBurst, time.Now()
		for answered := uint64(0); ; {
			select {
			case <-ctx.Done():
				return
			case want := <-wishes:
				if want.number > answered || want.number == 0 {
					answered = s.fulfil(ctx, want, wishes)
				} else if err := s.answer(ctx, answered); err != nil { // that answer may be lost; what was wanted then is not any more
					s.w.log.Debug("guest not told of its memory; it will ask again", "sandbox", s.id, "error", err)
				}
			}
			tokens = min(tokens+int(time.Since(last)/wishEvery), wishBurst)
			last = time.Now()
			if tokens--; tokens > 0 {
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wishEvery):
			}
		}
	})
}

// wish is how much memory a guest wants. A repeat has the same number, a newer one a higher one.
type wish struct{ bytes, number uint64 }

// fulfil changes the VM's memory to what its guest wants, within its limit, and
// tells the guest what it has; it returns the number of the newest wish that is done with. One that the host has no memory for is refused: its kernel
// then decides what has to end.
func (s *sandbox) fulfil(ctx context.Context, want wish, later <-chan wish) (answered uint64) {
	first := want.bytes
	asked, err := s.awaitMemory(ctx, func() error {
		select { // the guest may need less meanwhile
		case next := <-later:
			if next.number >= want.number {
				want = next
			}
		default:
		}
		return s.changeMemory(ctx, want, false)
	})
	if asked && want.bytes < first {
		s.holdBack() // what others gave back for it, it did not want: it is not to have them do so again and again
	}
	switch {
	case err == nil || ctx.Err() != nil || !s.alive():
	case bus.ReasonOf(err) == bus.ResourceExhausted:
		s.refuseMemory(ctx, want, err)
	default: // Slow is not short: the guest keeps what it got, and if that is too little, it asks again.
		s.w.log.Warn("memory of the vm not changed", "sandbox", s.id, "want_mib", want.bytes>>20, "error", err)
		if err := s.answer(ctx, want.number); err != nil {
			s.w.log.Debug("guest not told of its memory; it will ask again", "sandbox", s.id, "error", err)
		}
	}
	return want.number
}

// refuseMemory tells the guest that it has to do with what it has.
func (s *sandbox) refuseMemory(ctx context.Context, want wish, why error) {
	s.w.log.Warn("vm gets no more memory", "sandbox", s.id, "want_mib", want.bytes>>20, "error", why)
	s.w.event(ctx, "sandbox", s.id, "memory_refused", map[string]string{"error": why.Error()})
	if err := s.changeMemory(ctx, want, true); err != nil {
		s.w.log.Debug("guest not told that it gets no more memory; its charges do not wait for ever", "sandbox", s.id, "error", err)
	}
}

// changeMemory is one attempt to fulfil a wish. Its error is ResourceExhausted when
// the host has too little now.
func (s *sandbox) changeMemory(ctx context.Context, want wish, refuse bool) error {
	ctx, cancel := context.WithTimeout(ctx, resizeTime)
	defer cancel()
	if err := s.lockSize(ctx); err != nil {
		return err
	}
	defer s.unlockSize()
	vm := s.living()
	if vm == nil {
		return errVMEnded(s.id)
	}
	rec := vm.Record()
	to := max(min(want.bytes, s.size().MemoryBytes), rec.BootMemoryBytes)
	if to < rec.MemoryBytes && !refuse {
		// Its containers may need it by now, and the wish have been on its way since before this worker's time.
		agreed, err := s.agentAgrees(ctx, want.number)
		if err != nil {
			return err
		}
		if !agreed {
			to = rec.MemoryBytes
		}
	}
	if to != rec.MemoryBytes && !refuse {
		if err := s.setMemory(ctx, vm, to); err != nil {
			return err
		}
	}
	err := s.agentMemory(ctx, &agentv1.MemoryRequest{Memory: s.machineMemory(), Refused: refuse, Number: want.number})
	if err != nil {
		s.w.log.Debug("guest not told of its memory; it will ask again", "sandbox", s.id, "error", err)
	}
	return nil
}

// answer tells the guest what it has, as the answer to all wishes up to one.
func (s *sandbox) answer(ctx context.Context, number uint64) error {
	return s.changeMemory(ctx, wish{bytes: s.has(), number: number}, false)
}

// setMemory changes the VM's memory and the records of it. The caller holds the lock of the size.
func (s *sandbox) setMemory(ctx context.Context, vm hypervisor.VM, to uint64) error {
	was := vm.Record().MemoryBytes
	if to > was {
		granted, err := s.claimMemory(was, to)
		if err != nil {
			return err
		}
		to = granted
		defer s.w.budget.settle(s)
	}
	err := vm.Resize(ctx, hypervisor.Size{VCPUs: s.record().Vcpus, MemoryBytes: to})
	has := vm.Record().MemoryBytes
	if saveErr := s.update(ctx, func(rec *vmv1.Sandbox) { rec.MemoryBytes = has }); err == nil {
		err = saveErr
	}
	if has < was {
		s.w.budget.gaveBack()
	}
	if limit := s.size().MemoryBytes; has != was && (has > limit || was > limit) {
		// The host's cgroup has room for all that the guest has.
		if limitErr := s.limitOwner((*container).resources, s.size()); err == nil {
			err = limitErr
		}
	}
	if has != was {
		s.w.event(ctx, "sandbox", s.id, "memory", map[string]string{"memory_mib": itoa(uint32(has >> 20)), "limit_mib": itoa(uint32(s.size().MemoryBytes >> 20))})
	}
	return err
}

// growthStep is the least that is worth the guest's trouble, and what drivers add memory in.
const growthStep = 128 << 20

// claimMemory claims what there is of what the guest wants, which asks again when that is not enough.
func (s *sandbox) claimMemory(has, want uint64) (granted uint64, err error) {
	for more := want - has; ; more /= 2 {
		if granted = min(has+(more+growthStep-1)/growthStep*growthStep, want); granted > has {
			if err = s.w.budget.claim(s, granted); err == nil || more <= growthStep {
				return granted, err
			}
		}
	}
}

// machineMemory is what the guest is told of its memory.
func (s *sandbox) machineMemory() *agentv1.Memory {
	vm := s.machine()
	if vm == nil {
		return nil
	}
	rec, limit := vm.Record(), s.size().MemoryBytes
	return &agentv1.Memory{
		Has: rec.MemoryBytes, Limit: limit, Base: rec.BootMemoryBytes,
		Containers: containersPart(limit, s.w.cfg),
	}
}

// baseMemory is what every VM starts with.
func (w *Worker) baseMemory() uint64 { return uint64(w.cfg.BaseMemoryMiB) << 20 }
