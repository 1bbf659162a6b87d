// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// newTemplated is a host with a template, no pool, and a network with one link.
func newTemplated(t *testing.T) (*host, *fakeNet) {
	t.Helper()
	h := newStock(t, 0)
	net := h.newNet(link(2))
	h.run("first", "true") // boots, and has a template made
	h.awaitPool("its template", templateReady)
	h.await("first", "exited")
	h.delete("first", true)
	return h, net
}

func templateReady(p *vmv1.PoolReply) bool {
	return len(p.Templates) == 1 && p.Templates[0].State == "ready"
}

// expectWhole checks that a container runs, has its network, and goes.
func (h *host) expectWhole(id, origin, because string) {
	h.t.Helper()
	s := h.sandbox()
	if s.Origin != origin || !strings.Contains(s.OriginReason, because) || s.State != "running" {
		h.t.Errorf("the VM is %s from %q, %q", s.State, s.Origin, s.OriginReason)
	}
	h.awaitThat("of the second start", func(ev *busv1.Event) bool {
		return ev.Id == s.Id && ev.Event == "starting" && ev.Attributes["origin"] == origin && ev.Attributes["origin_reason"] == s.OriginReason
	})
	if !h.hasLinks(s.Id, link(2)) {
		h.t.Errorf("the VM has the cards %v and its guest the network %v", h.fake().NICs(s.Id), h.fake().Network(s.Id))
	}
	h.expectStatus(id, vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING)
	h.exec(id, "x1", "true").expectCode(0)
	h.delete(id, true)
}

func TestACloneThatFailsIsReplaced(t *testing.T) {
	for name, harm := range map[string]func(*testing.T, *hanging){
		"it dies":           func(t *testing.T, vm *hanging) { kill9(t, vm.Record().PID) },
		"it is never ready": func(_ *testing.T, vm *hanging) { vm.hang() },
	} {
		t.Run(name, func(t *testing.T) {
			if name != "it dies" && testing.Short() {
				t.Skip("waits for as long as a clone may take")
			}
			h, _ := newTemplated(t)
			var clones atomic.Int32
			h.stock.set(func() {
				h.stock.spoil = func(vm *hanging) {
					if clones.Add(1) == 1 {
						harm(t, vm)
					}
				}
			})
			h.run("c1", "sleep")
			h.expectWhole("c1", "template", "the template VM before it failed: ")
			if n := clones.Load(); n != 2 {
				t.Errorf("%d clones were tried", n)
			}
			if p := h.pool(); !templateReady(p) {
				t.Errorf("one clone that failed has cost the template: %v", p)
			}
			h.stop()
			h.expectNoTrace()
		})
	}
}

func TestAVMBootsWhereClonesFailAndTheTemplateIsGivenUp(t *testing.T) {
	h, _ := newTemplated(t)
	var clones atomic.Int32
	h.stock.set(func() { h.stock.spoil = func(vm *hanging) { clones.Add(1); kill9(t, vm.Record().PID) } })
	h.run("c1", "sleep")
	h.expectWhole("c1", "boot", "the template VM before it failed: ")
	if n := clones.Load(); n != 2 {
		t.Errorf("%d clones were tried", n)
	}
	if ev := h.await("plain", "failed"); ev.Kind != "template" || !strings.Contains(ev.Attributes["error"], "ended") {
		t.Errorf("the event is %v", ev)
	}
	h.stop()
	h.expectNoTrace()
}

func TestAPoolVMThatFailsWhenItIsTakenIsReplaced(t *testing.T) {
	h := newStock(t, 1)
	h.newNet(link(2))
	for _, c := range []struct {
		id, name string
		kill     bool
	}{{"c1", "it dies", true}, {"c2", "it does not answer", false}} {
		t.Run(c.name, func(t *testing.T) {
			if !c.kill && testing.Short() {
				t.Skip("waits for as long as a clone may take to answer")
			}
			pooled := h.awaitPool("filled", full).Sandboxes[0]
			h.driver.hangAll()
			done := make(chan struct{})
			go func() {
				defer close(done)
				h.run(c.id, "sleep")
			}()
			h.await(pooled.Id, "starting")
			if c.kill {
				kill9(t, int(pooled.Pid))
			}
			<-done
			if got := h.state(c.id).Sandbox; got != pooled.Id {
				t.Errorf("the container runs in %s, and %s was taken", got, pooled.Id)
			}
			h.awaitPool("filled again", full)
			l := h.list()
			for _, s := range l.Sandboxes {
				if s.Id == pooled.Id && (s.Origin != "template" || s.Pid == pooled.Pid || !strings.Contains(s.OriginReason, "the pool VM before it failed: ")) {
					t.Errorf("its VM is %v", s)
				}
			}
			h.expectStatus(c.id, vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING)
			h.exec(c.id, "x1", "true").expectCode(0)
			h.delete(c.id, true)
			if p := h.pool(); !templateReady(p) {
				t.Errorf("a VM of the pool that failed has cost the template: %v", p)
			}
		})
	}
	h.stop()
	h.expectNoTrace()
}

// TestCardsOfManyClonesHaveAddressesOfTheirOwn: also where their links have none, or all the same, as those of ipvlan.
func TestCardsOfManyClonesHaveAddressesOfTheirOwn(t *testing.T) {
	const clones = 64
	h := newStock(t, 2)
	nameless := link(2)
	nameless.Mac = ""
	h.newNet(nameless)
	h.awaitPool("filled", full)
	seen := map[string]string{}
	for i := range clones {
		id := fmt.Sprint("c", i)
		h.create(id, "sleep")
		s := h.state(id).Sandbox
		for _, mac := range h.fake().NICs(s) {
			if other := seen[mac]; other != "" {
				t.Errorf("%s and %s have cards with the address %s", other, s, mac)
			}
			seen[mac] = s
		}
		h.delete(id, true)
	}
	if len(seen) != clones {
		t.Errorf("%d clones have had %d addresses", clones, len(seen))
	}
	h.stop()
	h.expectNoTrace()
}

// TestWhatStopsEveryVMIsNotTheTemplatesFault: a host or a cgroup in which none runs, and a caller who gives up.
func TestWhatStopsEveryVMIsNotTheTemplatesFault(t *testing.T) {
	h, _ := newTemplated(t)
	h.stock.set(func() { h.stock.broke = errors.New("no memory in its cgroup") })
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "c1", r, h.bundle("c1", "sleep")))
	if err == nil || !strings.Contains(err.Error(), "no memory in its cgroup") {
		t.Errorf("the create says %v", err)
	}
	hangs := make(chan struct{}, 2)
	h.stock.set(func() { h.stock.broke = nil; h.stock.spoil = func(vm *hanging) { vm.hang(); hangs <- struct{}{} } })
	r = startRelay(t, h.bus.RunDir)
	ctx = operation(t)
	failed := make(chan error, 1)
	req := h.request(ctx, "c2", r, h.bundle("c2", "sleep"))
	go func() {
		_, err := call[vmv1.CreateReply](ctx, h, "create", req)
		failed <- err
	}()
	select {
	case <-hangs:
	case <-time.After(patience):
		t.Fatal("no clone is on its way")
	}
	h.delete("c2", true)
	if err := <-failed; err == nil {
		t.Error("the create of a deleted container succeeded")
	}
	h.stock.set(func() { h.stock.spoil = nil })
	if p := h.pool(); !templateReady(p) {
		t.Errorf("the template is given up: %v", p)
	}
	h.run("c3", "sleep")
	if s := h.sandbox(); s.Origin != "template" || s.OriginReason != "" {
		t.Errorf("the next VM's origin is %q, %q", s.Origin, s.OriginReason)
	}
	h.delete("c3", true)
	h.stop()
	h.expectNoTrace()
}
