// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

// shortageTime is how long a VM that needs memory waits for others to give theirs back. Its
// guest waits longer (agent/memory).
const shortageTime = 10 * time.Second

// budget is the memory that the VMs of this host share.
type budget struct {
	w     *Worker
	total uint64 // bytes that all VMs may have; 0: what the host has
	free  func() (available, floor uint64)

	mu      sync.Mutex
	claims  map[*sandbox]uint64 // guarded by mu: what VMs are about to have
	changed chan struct{}       // guarded by mu: closed when memory has come back
	needy   int                 // guarded by mu: VMs that wait for memory
}

func newBudget(w *Worker) *budget {
	return &budget{
		w: w, total: uint64(w.cfg.MemoryBudgetMiB) << 20, free: hostFree,
		claims: map[*sandbox]uint64{}, changed: make(chan struct{}),
	}
}

// claim sets memory aside for a VM that is about to have so many bytes. settle
// follows when it has them, or does not get them.
func (b *budget) claim(s *sandbox, bytes uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	more, all := bytes-min(s.has(), bytes), bytes
	for _, other := range b.w.sandboxList() {
		if other != s && (other.alive() || b.claims[other] > 0) {
			all += max(other.has(), b.claims[other])
		}
	}
	if b.total > 0 && all > b.total {
		return bus.Errorf(bus.ResourceExhausted, "the VMs of this host would have %d MiB of memory, more than the %d that [vm] memory_budget_mib gives them", all>>20, b.total>>20)
	}
	if available, floor := b.free(); available < more+floor {
		return bus.Errorf(bus.ResourceExhausted, "the host has %d MiB of memory left, too little for %d more and %d kept free", available>>20, more>>20, floor>>20)
	}
	b.claims[s] = bytes
	return nil
}

func (b *budget) settle(s *sandbox) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.claims, s)
}

// gaveBack tells those who wait that a VM has less than before.
func (b *budget) gaveBack() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.changed)
	b.changed = make(chan struct{})
}

// inNeed notes that a VM of containers waits for memory, until its result is called.
func (b *budget) inNeed() (over func()) {
	add := func(n int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.needy += n
	}
	add(1)
	return func() { add(-1) }
}

// somebodyNeeds tells whether a VM of containers waits for memory.
func (b *budget) somebodyNeeds() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.needy > 0
}

// freed is closed when a VM gives memory back from now on.
func (b *budget) freed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// has is what the VM has now.
func (s *sandbox) has() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.MemoryBytes
}

// trimOthers has all other VMs give back what they do not use.
func (w *Worker) trimOthers(needy *sandbox) {
	for _, s := range w.sandboxList() {
		if s == needy || !s.alive() || s.has() <= w.baseMemory() {
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

// hostFree is what this host can give without swapping, and what of that no VM gets.
func hostFree() (available, floor uint64) {
	floor = min(max(hostMemory()/32, 256<<20), 2<<30)
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return ^uint64(0) - floor, floor
	}
	_, rest, _ := strings.Cut(string(text), "MemAvailable:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return ^uint64(0) - floor, floor
	}
	kib, err := strconv.ParseUint(fields[0], 10, 64)
	if err != nil {
		return ^uint64(0) - floor, floor
	}
	return kib << 10, floor
}
