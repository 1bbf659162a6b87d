// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"testing"
	"time"

	agentv1 "bulkhead/proto/agent/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

// toldMemory waits until a guest was told of its memory as expected.
func (h *host) toldMemory(driver *fake.Driver, id, what string, is func(*agentv1.MemoryRequest) bool) {
	h.t.Helper()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) { // a fake guest tells no event
		if m := driver.Memory(id); m != nil && is(m) {
			return
		}
		if time.Now().After(limit) {
			h.t.Fatalf("%s: the guest was last told %v", what, driver.Memory(id))
		}
	}
}

func (h *host) want(driver *fake.Driver, id string, bytes uint64) {
	h.t.Helper()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) { // not connected again, after a restart
		err := driver.WantMemory(id, bytes)
		if err == nil {
			return
		}
		if time.Now().After(limit) {
			h.t.Fatal(err)
		}
	}
}

func TestAVMGetsMemoryWhenItsGuestAsksAndNoMoreThanItsLimit(t *testing.T) {
	driver := fake.New(fake.Options{})
	h := newBus(t)
	h.driver = &observed{Driver: driver, started: make(chan string, 64)}
	h.serve()
	h.createAs("c", sized(h.bundle("c", "sleep"), 512*mib, 100_000))
	id := h.list().Sandboxes[0].Id
	h.toldMemory(driver, id, "at first", func(m *agentv1.MemoryRequest) bool {
		return m.Memory.GetHas() == 128*mib && m.Memory.GetBase() == 128*mib && m.Memory.GetLimit() == 608*mib && m.Memory.GetContainers() == 512*mib
	})
	h.want(driver, id, 256*mib)
	h.toldMemory(driver, id, "asked for 256 MiB", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 256*mib && !m.Refused })
	h.want(driver, id, 1<<50)
	h.toldMemory(driver, id, "asked for more than its limit", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 608*mib })
	if got := h.list().Sandboxes[0]; got.MemoryBytes != 608*mib || got.MemoryLimitBytes != 608*mib {
		t.Errorf("the record has %d of %d MiB", got.MemoryBytes/mib, got.MemoryLimitBytes/mib)
	}
	// What was wanted before is not any more, however often it is said.
	if err := errors.Join(driver.RepeatWish(id, 256*mib, 1), driver.RepeatWish(id, 608*mib, 2)); err != nil {
		t.Fatal(err)
	}
	h.want(driver, id, 480*mib)
	h.toldMemory(driver, id, "asked for less", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 480*mib && m.Number == 3 })
	h.restart()
	// A worker that knows of no wish takes nothing back by one that the guest does not own to any more, and answers it.
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) { // not connected again yet
		if err := driver.RepeatWish(id, 256*mib, 1); err != nil {
			t.Log(err)
		}
		if m := driver.Memory(id); m.GetNumber() == 1 {
			if m.Memory.GetHas() != 480*mib {
				t.Errorf("a wish from before the worker's time has left the guest %d MiB", m.Memory.GetHas()/mib)
			}
			break
		}
		if time.Now().After(limit) {
			t.Fatal("an old wish is not answered by a new worker")
		}
	}
	h.want(driver, id, 0)
	h.toldMemory(driver, id, "asked for nothing after a restart of the worker", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 128*mib })
	h.delete("c", true)
	h.expectNothing()
}

// TestVMsShareTheirHostsMemory: who needs memory has the others give theirs back, and is refused when they do not.
func TestVMsShareTheirHostsMemory(t *testing.T) {
	driver := fake.New(fake.Options{})
	h := newBus(t)
	h.cfg.MemoryBudgetMiB = 128 + 512
	h.driver = &observed{Driver: driver, started: make(chan string, 64)}
	h.serve()
	ids := map[string]string{}
	for _, name := range []string{"a", "b"} {
		h.createAs(name, sized(h.bundle(name, "sleep"), 512*mib, 100_000))
		ids[name] = h.state(name).Sandbox
	}
	h.want(driver, ids["a"], 512*mib)
	h.toldMemory(driver, ids["a"], "the first", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 512*mib })
	h.want(driver, ids["b"], 512*mib)
	h.toldMemory(driver, ids["a"], "the first, when the second needs memory", func(m *agentv1.MemoryRequest) bool { return m.Trim })
	h.want(driver, ids["a"], 128*mib)
	h.toldMemory(driver, ids["b"], "the second, when the first has given back", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 512*mib && !m.Refused })
	h.want(driver, ids["a"], 512*mib)
	h.toldMemory(driver, ids["a"], "the first, when the second gives nothing back", func(m *agentv1.MemoryRequest) bool { return m.Refused && m.Memory.GetHas() == 128*mib })
	h.delete("a", true)
	h.delete("b", true)
	h.expectNothing()
}
