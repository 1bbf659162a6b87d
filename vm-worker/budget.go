// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"bulkhead/bus"
	"bulkhead/vm-worker/hypervisor"
)

// budget is the memory that the VMs of this host share.
type budget struct {
	w     *Worker
	total uint64 // bytes that all VMs may have; 0: what the host has
	free  func() (available, floor uint64)
	used  func(pid int) uint64 // what a process has of memory of its own

	mu      sync.Mutex
	claims  map[*sandbox]uint64 // guarded by mu: what VMs are about to have
	changed chan struct{}       // guarded by mu: closed when memory has come back
	needy   int                 // guarded by mu: VMs that wait for memory
}

func newBudget(w *Worker) *budget {
	return &budget{
		w: w, total: uint64(w.cfg.MemoryBudgetMiB) << 20, free: hostFree, used: usedBy,
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
	promised := b.promised(s)
	if available, floor := b.free(); available < more+promised+floor {
		return bus.Errorf(bus.ResourceExhausted, "the host has %d MiB of memory left, too little for %d more, %d that VMs were given and have not used yet, and %d kept free",
			available>>20, more>>20, promised>>20, floor>>20)
	}
	b.claims[s] = bytes
	return nil
}

// promised is what VMs were given to grow by, or are about to be, and have not used yet: the host counts it as
// available. What they start with is not among it. Few idle VMs ever use all of that, most of it they share with their
// template, and a host that kept all of it free for each would hold a fraction of them. The caller holds b.mu.
func (b *budget) promised(claimant *sandbox) (sum uint64) {
	for _, s := range b.w.sandboxList() {
		has := s.has()
		if s != claimant {
			sum += max(b.claims[s], has) - has
		}
		if vm := s.living(); vm != nil {
			sum += b.unused(s, vm.Record(), has)
		}
	}
	return sum
}

// usedFor is how long it is believed what a VM has used. It may have used more meanwhile, which the host then counts twice.
const usedFor = 100 * time.Millisecond

// unused is what of the memory that a VM has grown by it has not used yet. The caller holds b.mu.
func (b *budget) unused(s *sandbox, rec hypervisor.Record, has uint64) uint64 {
	grown := has - min(rec.BootMemoryBytes, has)
	if grown == 0 {
		return 0
	}
	if time.Since(s.usedAt) > usedFor {
		s.used, s.usedAt = b.used(rec.PID), time.Now()
	}
	return min(has-min(s.used, has), grown)
}

// usedBy reads what a process has of memory of its own: what is resident, without what is a file's (proc(5), statm).
func usedBy(pid int) uint64 {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0 // it has ended
	}
	var size, resident, shared uint64
	if _, err := fmt.Sscan(string(text), &size, &resident, &shared); err != nil {
		return 0
	}
	return (resident - min(shared, resident)) * uint64(os.Getpagesize())
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
