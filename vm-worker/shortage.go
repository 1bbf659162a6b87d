// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"time"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

const (
	// shortageTime is how long a VM that needs memory waits for others to give theirs back. Its
	// guest waits longer (agent/memory).
	shortageTime = 10 * time.Second
	// shortageLook is the pause between two looks at a host that has too little, and between two of the guest's wishes meanwhile.
	shortageLook = 500 * time.Millisecond
	// A VM that was refused memory has others give theirs back no more for so long, twice as long each time.
	// That it wanted more than there is may be its nature, and what others give back they may have to read again.
	firstHold = 20 * time.Second
	mostHold  = 10 * time.Minute
)

// trimEvery is how often one VM is asked for what it does not use, whoever needs it. Tests shorten it.
var trimEvery = time.Minute

// shortage is what the worker remembers of a VM and scarce memory.
type shortage struct {
	hold    time.Duration // the last one
	until   time.Time     // the end of it
	trimmed time.Time     // when the VM was last asked for what it does not use
}

// refused begins a hold. What is refused in one has been a burden to nobody, and makes none longer.
func (h *shortage) refused(now time.Time) {
	if now.Before(h.until) {
		return
	}
	if now.Sub(h.until) > mostHold {
		h.hold = 0
	}
	h.hold = min(max(2*h.hold, firstHold), mostHold)
	h.until = now.Add(h.hold)
}

func (h *shortage) held(now time.Time) bool { return now.Before(h.until) }

// trim tells whether the VM may be asked for what it does not use, which it then was.
func (h *shortage) trim(now time.Time) bool {
	if now.Sub(h.trimmed) < trimEvery {
		return false
	}
	h.trimmed = now
	return true
}

// awaitMemory has the VM get memory by a function that fails with ResourceExhausted while there is too little, and
// is tried again when there may be more. Others give theirs back for it meanwhile, unless it is held: then it has what is free.
// It tells whether others were asked.
func (s *sandbox) awaitMemory(ctx context.Context, get func() error) (asked bool, err error) {
	deadline, look := time.NewTimer(shortageTime), time.NewTicker(shortageLook)
	defer deadline.Stop()
	defer look.Stop()
	for {
		freed := s.w.budget.freed()
		err := get()
		if ctx.Err() != nil || bus.ReasonOf(err) != bus.ResourceExhausted {
			return asked, err
		}
		if !asked && !s.heldBack() { // once: each time they give up files that they have cached
			asked = true
			defer s.w.budget.inNeed()()
			s.w.trimOthers(s)
			s.w.tasks.Go(func() { s.w.stock.yield(s.w.context()) })
		}
		select {
		case <-freed:
		case <-look.C: // other processes of the host tell nobody what they give back
		case <-deadline.C:
			s.holdBack()
			return asked, err
		case <-ctx.Done():
			return asked, err
		}
	}
}

// holdBack has nobody give memory back for this VM for a while.
func (s *sandbox) holdBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shortage.refused(time.Now())
}

// heldBack tells whether nobody gives memory back for this VM now.
func (s *sandbox) heldBack() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shortage.held(time.Now())
}

// trimOthers has all other VMs give back what they do not use.
func (w *Worker) trimOthers(needy *sandbox) {
	for _, s := range w.sandboxList() {
		if s == needy || !s.alive() || s.has() <= w.baseMemory() || !s.trimNow() {
			continue
		}
		w.tasks.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), agentTime)
			defer cancel()
			if err := s.agentMemory(ctx, &agentv1.MemoryRequest{Trim: true}); err != nil {
				w.log.Debug("guest not asked for unused memory", "sandbox", s.id, "error", err)
			}
		})
	}
}

func (s *sandbox) trimNow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shortage.trim(time.Now())
}
