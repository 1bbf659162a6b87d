// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/config"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

const (
	testMiB  = 1 << 20
	testBase = 128 * testMiB
)

// running is a VM that runs.
type running struct {
	hypervisor.VM
	rec hypervisor.Record
}

func (r running) Record() hypervisor.Record { return r.rec }
func (r running) Done() <-chan struct{}     { return nil }

// emptyHost is a host of which the VMs have used nothing yet.
func emptyHost(available uint64) (*Worker, *budget) {
	w := &Worker{cfg: config.VM{}, sandboxes: map[string]*sandbox{}}
	b := newBudget(w)
	b.free = func() (uint64, uint64) { return available, 256 * testMiB }
	b.used = func(int) uint64 { return 0 }
	return w, b
}

func (w *Worker) addVM(has uint64) *sandbox {
	id := fmt.Sprint("vm-", len(w.sandboxes))
	s := &sandbox{w: w, id: id, rec: &vmv1.Sandbox{Id: id, MemoryBytes: has}}
	s.vm = running{rec: hypervisor.Record{BootMemoryBytes: testBase, Process: hypervisor.Process{PID: len(w.sandboxes)}}}
	w.sandboxes[id] = s
	return s
}

// TestMemoryIsGrantedOnce holds without a budget too: what VMs are about to have, or have and do not use yet, the host still counts as free.
func TestMemoryIsGrantedOnce(t *testing.T) {
	w, b := emptyHost(2 << 30)
	var granted []*sandbox
	for range 10 {
		s := w.addVM(testBase)
		if err := b.claim(s, testBase+512*testMiB); err == nil {
			granted = append(granted, s)
		} else if bus.ReasonOf(err) != bus.ResourceExhausted {
			t.Fatal(err)
		}
	}
	if len(granted) != 3 { // of 2048 MiB, 256 are kept free
		t.Fatalf("%d VMs are given 512 MiB each of 2 GiB", len(granted))
	}
	for _, s := range granted { // they have it, and do not use it
		s.rec.MemoryBytes = testBase + 512*testMiB
		b.settle(s)
	}
	next := w.addVM(testBase)
	err := b.claim(next, testBase+512*testMiB)
	if bus.ReasonOf(err) != bus.ResourceExhausted || !strings.Contains(err.Error(), "1536 that VMs were given") {
		t.Errorf("what others have been given is given once more: %v", err)
	}
	// What is used is not free any more, and nothing that is kept for it.
	b.used = func(int) uint64 { return testBase + 512*testMiB }
	b.free = func() (uint64, uint64) { return 512 * testMiB, 256 * testMiB }
	for _, s := range granted {
		s.usedAt = s.usedAt.Add(-usedFor)
	}
	if err := b.claim(next, testBase+256*testMiB); err != nil {
		t.Errorf("with all used: %v", err)
	}
	if err := b.claim(next, testBase+257*testMiB); bus.ReasonOf(err) != bus.ResourceExhausted {
		t.Errorf("beyond what is free: %v", err)
	}
}

// TestIdleVMsAreNotCountedWithAllTheyStartWith: a host holds more of them than their base memory together would allow.
func TestIdleVMsAreNotCountedWithAllTheyStartWith(t *testing.T) {
	w, b := emptyHost(1 << 30)
	for range 1000 {
		s := w.addVM(testBase)
		if err := b.claim(s, testBase); err != nil {
			t.Fatalf("with %d VMs: %v", len(w.sandboxes), err)
		}
	}
}

func TestWhatAProcessUsesIsRead(t *testing.T) {
	if got := usedBy(os.Getpid()); got < testMiB || got > 4<<30 {
		t.Errorf("this process uses %d bytes", got)
	}
	if got := usedBy(1 << 30); got != 0 {
		t.Errorf("no process uses %d bytes", got)
	}
}

// TestRefusalsHoldLongerEachTime and one VM is asked for what it leaves unused once a minute, by whomever.
func TestRefusalsHoldLongerEachTime(t *testing.T) {
	var h shortage
	now := time.Now()
	for _, want := range []time.Duration{firstHold, 2 * firstHold, 4 * firstHold} {
		h.refused(now)
		h.refused(now.Add(want / 2)) // makes it no longer
		if !h.held(now.Add(want-time.Second)) || h.held(now.Add(want)) {
			t.Errorf("held for %v, not %v", h.hold, want)
		}
		now = now.Add(want)
	}
	for range 10 {
		h.refused(now)
		now = now.Add(mostHold)
	}
	if h.hold != mostHold {
		t.Errorf("held for %v at most, not %v", h.hold, mostHold)
	}
	now = now.Add(mostHold + time.Second)
	if h.refused(now); h.hold != firstHold {
		t.Errorf("after a long time without a refusal it is held for %v", h.hold)
	}
	if !h.trim(now) || h.trim(now.Add(trimEvery-time.Second)) || !h.trim(now.Add(trimEvery)) {
		t.Error("it is asked more or less than once a minute")
	}
}
