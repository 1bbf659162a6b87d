// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
)

// mortal is a hypervisor whose VMs die at a step of the making of their first container: as many as deaths.
type mortal struct {
	t      *testing.T
	h      *host
	deaths atomic.Int32
}

func (m *mortal) die() error {
	if m.deaths.Add(-1) < 0 {
		return nil
	}
	reply, err := call[vmv1.ListReply](m.t.Context(), m.h, "list", &vmv1.ListRequest{})
	if err != nil {
		return err
	}
	for _, s := range reply.Sandboxes {
		kill9(m.t, int(s.Pid))
	}
	return nil
}

// deathPoints are steps between the guest's identity and its container.
var deathPoints = map[string]func(*mortal) fake.Options{
	"its network": func(m *mortal) fake.Options {
		return fake.Options{NetworkError: func(*agentv1.NetworkRequest) error { return m.die() }}
	},
	"its files": func(m *mortal) fake.Options {
		return fake.Options{AttachError: func(path string) error {
			if strings.HasPrefix(path, "rehearsal/") {
				return nil
			}
			return m.die()
		}}
	},
	"its disks": func(m *mortal) fake.Options {
		return fake.Options{DiskError: func(hypervisor.Disk) error { return m.die() }}
	},
}

func TestAVMThatEndsWhileItsContainerIsMadeIsReplaced(t *testing.T) {
	for point, options := range deathPoints {
		for _, origin := range []string{"boot", "template", "pool"} {
			t.Run(point+", from "+origin, func(t *testing.T) {
				m := &mortal{t: t}
				driver := func() *observed {
					return &observed{Driver: fake.New(options(m)), started: make(chan string, 1024)}
				}
				if origin == "boot" {
					m.h = newBus(t)
					m.h.driver = driver()
					m.h.serve()
				} else {
					pool := 0
					if origin == "pool" {
						pool = 1
					}
					m.h = newStock(t, pool, func(d *templating) { d.observed = driver() })
					m.h.driver = m.h.stock.observed
				}
				h := m.h
				net := h.newNet(link(2))
				switch origin {
				case "template":
					h.create("first", "true") // boots, and has a template made
					h.awaitPool("its template", templateReady)
					h.delete("first", true)
				case "pool":
					h.awaitPool("filled", full)
				}
				m.deaths.Store(1)
				r := startRelay(t, h.bus.RunDir)
				ctx := operation(t)
				req := h.request(ctx, "c1", r, h.bundle("c1", "sleep"))
				req.Devices = []*vmv1.HandedDevice{{Major: 7, Minor: 1}}
				if _, err := call[vmv1.CreateReply](ctx, h, "create", req); err != nil {
					t.Fatal(err)
				}
				r.commit()
				h.start("c1")
				s := h.sandbox()
				ev := h.await(s.Id, "replaced")
				if ev.Kind != "sandbox" || ev.Attributes["origin"] != origin || ev.Attributes["reason"] == "" {
					t.Errorf("the event is %v", ev)
				}
				if got := len(h.fake().Attached(s.Id)); got != 1 {
					t.Errorf("%d file systems are attached", got)
				}
				if got := len(h.fake().Disks(s.Id)); got != 1 {
					t.Errorf("%d disks are attached", got)
				}
				net.mu.Lock()
				attached := len(net.attachments)
				net.mu.Unlock()
				if attached != 1 {
					t.Errorf("%d sandboxes are attached to a network", attached)
				}
				h.expectWhole("c1", "boot", "the "+origin+" VM before it ended while its container was made: ")
				r.expectEnded()
				if left := m.deaths.Load(); left >= 0 && point != "its network" {
					t.Errorf("%d deaths are left", left)
				}
				h.stop()
				h.expectNoTrace()
			})
		}
	}
}

func TestAVMThatEndsWhileItsContainerIsMadeIsReplacedOnce(t *testing.T) {
	for point, options := range deathPoints {
		t.Run(point, func(t *testing.T) {
			m := &mortal{t: t}
			m.h = newHost(t, options(m))
			h := m.h
			net := h.newNet(link(2))
			m.deaths.Store(2)
			r := startRelay(t, h.bus.RunDir)
			ctx := operation(t)
			req := h.request(ctx, "c1", r, h.bundle("c1", "sleep"))
			req.Devices = []*vmv1.HandedDevice{{Major: 7, Minor: 1}}
			_, err := call[vmv1.CreateReply](ctx, h, "create", req)
			refused(t, "a create whose VM ends twice", err, bus.Unavailable, "so had the VM before it: the boot VM ")
			h.await("c1", "create_failed")
			if n := h.count("replaced"); n != 1 {
				t.Errorf("it was replaced %d times", n)
			}
			r.expectEnded()
			eventually(t, "the network is taken back", func() bool {
				net.mu.Lock()
				defer net.mu.Unlock()
				return len(net.attachments) == 0
			})
			h.expectNothing()
		})
	}
}

// count is how many events there were of a name.
func (h *host) count(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(h.events), func(ev *busv1.Event) bool { return ev.Event != name }))
}

// TestWhatFailsInALivingVMIsNotTriedAgain: a mistake of the container, and a caller that has gone.
func TestWhatFailsInALivingVMIsNotTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		spec func(string) string
		die  func(m *mortal, r *relay) // while it is given its files
		says string
	}{
		"no program": {spec: func(s string) string { return strings.Replace(s, `["sleep"]`, `[]`, 1) }, says: "names no process"},
		"the caller goes, and the VM with it": {die: func(m *mortal, r *relay) {
			r.kill()
			r.expectEnded()
			m.deaths.Store(1)
			if err := m.die(); err != nil {
				m.t.Error(err)
			}
		}, says: "the caller has gone away"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &mortal{t: t}
			var r *relay
			m.h = newHost(t, fake.Options{AttachError: func(string) error {
				if c.die != nil {
					c.die(m, r)
				}
				return nil
			}})
			h := m.h
			r = startRelay(t, h.bus.RunDir)
			ctx := operation(t)
			req := h.request(ctx, "c1", r, h.bundle("c1", "sleep"))
			if c.spec != nil {
				req.Config = c.spec(req.Config)
			}
			_, err := call[vmv1.CreateReply](ctx, h, "create", req)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the create says %v", err)
			}
			h.await("c1", "create_failed")
			if n := h.count("starting"); n != 1 || h.count("replaced") != 0 {
				t.Errorf("%d VMs were started, and the events are %v", n, h.told())
			}
			r.expectEnded()
			h.expectNothing()
		})
	}
}
