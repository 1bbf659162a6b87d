// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
	vmworker "bulkhead/vm-worker"
	"bulkhead/vm-worker/hypervisor/fake"
)

// grownB is a host of two VMs, of which b has all that there is to have.
func grownB(t *testing.T) (h *host, driver *fake.Driver, ids map[string]string) {
	t.Helper()
	driver = fake.New(fake.Options{})
	h = newBus(t)
	h.cfg.MemoryBudgetMiB = 2*128 + 512
	h.driver = &observed{Driver: driver, started: make(chan string, 64)}
	h.serve()
	ids = map[string]string{}
	for _, name := range []string{"a", "b"} {
		h.createAs(name, sized(h.bundle(name, "sleep"), 512*mib, 100_000))
		ids[name] = h.state(name).Sandbox
	}
	h.want(driver, ids["b"], 608*mib)
	h.toldMemory(driver, ids["b"], "b, grown", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 608*mib })
	return h, driver, ids
}

// TestARefusedVMIsNoBurdenOnOthers, however often it asks: what they have cached they may read again.
func TestARefusedVMIsNoBurdenOnOthers(t *testing.T) {
	vmworker.SetTrimEvery(t, 0) // so it is the hold that keeps b from being asked
	h, driver, ids := grownB(t)
	h.want(driver, ids["a"], 512*mib)
	h.toldMemory(driver, ids["b"], "b, when a needs memory", func(m *agentv1.MemoryRequest) bool { return m.Trim })
	h.toldMemory(driver, ids["a"], "a, when b gives nothing back", func(m *agentv1.MemoryRequest) bool { return m.Refused && m.Number == 1 })
	h.want(driver, ids["b"], 608*mib)
	h.toldMemory(driver, ids["b"], "b, answered", func(m *agentv1.MemoryRequest) bool { return !m.Trim })

	h.want(driver, ids["a"], 512*mib)
	h.toldMemory(driver, ids["a"], "a, once more", func(m *agentv1.MemoryRequest) bool { return m.Refused && m.Number == 2 })
	if m := driver.Memory(ids["b"]); m.Trim {
		t.Error("b is asked again for what a was refused")
	}
	// What is free it has.
	h.want(driver, ids["b"], 128*mib)
	h.toldMemory(driver, ids["b"], "b, smaller", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 128*mib })
	h.want(driver, ids["a"], 512*mib)
	h.toldMemory(driver, ids["a"], "a, when there is some", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 512*mib && !m.Refused })
	h.delete("a", true)
	h.delete("b", true)
	h.expectNothing()
}

// TestAVMThatTakesBackItsWishIsNoBurdenEither: what others gave back for it would else be asked of them for ever.
func TestAVMThatTakesBackItsWishIsNoBurdenEither(t *testing.T) {
	vmworker.SetTrimEvery(t, 0)
	h, driver, ids := grownB(t)
	h.want(driver, ids["a"], 512*mib)
	h.toldMemory(driver, ids["b"], "b, when a needs memory", func(m *agentv1.MemoryRequest) bool { return m.Trim })
	h.want(driver, ids["a"], 128*mib)
	h.toldMemory(driver, ids["a"], "a, which needs none any more", func(m *agentv1.MemoryRequest) bool { return !m.Refused && m.Number == 2 })
	h.want(driver, ids["b"], 608*mib)
	h.toldMemory(driver, ids["b"], "b, answered", func(m *agentv1.MemoryRequest) bool { return !m.Trim })

	h.want(driver, ids["a"], 512*mib)
	h.toldMemory(driver, ids["a"], "a, which needs it again", func(m *agentv1.MemoryRequest) bool { return m.Refused && m.Number == 3 })
	if m := driver.Memory(ids["b"]); m.Trim {
		t.Error("b is asked again for what a did not want")
	}
	h.delete("a", true)
	h.delete("b", true)
	h.expectNothing()
}

// tryCreate makes what a create needs, and returns the create.
func (h *host) tryCreate(id string, spec *specs.Spec) func() error {
	h.t.Helper()
	r, ctx := startRelay(h.t, h.bus.RunDir), operation(h.t)
	req := h.request(ctx, id, r, spec)
	return func() error {
		_, err := call[vmv1.CreateReply](ctx, h, "create", req)
		if err != nil {
			r.kill()
			return errors.Join(err, os.Remove(r.socket))
		}
		r.commit()
		return nil
	}
}

// TestACreateGetsTheMemoryOfThePool also one that takes no VM of it.
func TestACreateGetsTheMemoryOfThePool(t *testing.T) {
	h := newStock(t, 1)
	h.awaitPool("filled", full)
	h.stop()
	h.cfg.MemoryBudgetMiB = 2 * 128
	h.serve()
	h.awaitPool("filled", full)
	for _, id := range []string{"one", "two"} {
		spec := h.bundle(id, "sleep")
		if spec.Annotations == nil {
			spec.Annotations = map[string]string{}
		}
		spec.Annotations[vmv1.AnnotationKSM] = "off" // the pool's may be merged
		if err := h.tryCreate(id, spec)(); err != nil {
			t.Fatalf("%s, beside %d VMs of the pool: %v", id, h.pool().Ready, err)
		}
	}
	if p := h.pool(); p.Ready != 0 || p.Waiting == "" {
		t.Errorf("the pool says %v", p)
	}
	h.delete("one", true)
	h.delete("two", true)
	h.stop()
	h.expectNoTrace()
}

// TestACreateWaitsForWhatOthersLeaveUnused as a VM that grows does.
func TestACreateWaitsForWhatOthersLeaveUnused(t *testing.T) {
	driver := fake.New(fake.Options{})
	h := newBus(t)
	h.cfg.MemoryBudgetMiB = 608
	h.driver = &observed{Driver: driver, started: make(chan string, 64)}
	h.serve()
	h.createAs("a", sized(h.bundle("a", "sleep"), 512*mib, 100_000))
	id := h.state("a").Sandbox
	h.want(driver, id, 608*mib)
	h.toldMemory(driver, id, "a, grown", func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == 608*mib })
	b, created := h.tryCreate("b", sized(h.bundle("b", "sleep"), 512*mib, 100_000)), make(chan error, 1)
	go func() { created <- b() }()
	h.toldMemory(driver, id, "a, when a create needs memory", func(m *agentv1.MemoryRequest) bool { return m.Trim })
	h.want(driver, id, 128*mib) // as its guest does then
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	h.delete("a", true)
	h.delete("b", true)
	h.expectNothing()
}
