// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	honest = ipv4(own4, other4, protoUDP, 0, udp(1000, 53, "the end"))
	big    = ipv4(own4, other4, protoTCP, 0, make([]byte, 1400))
)

// guarded is a VM's device and the far end of the link that it is joined to.
type guarded struct {
	ns   *netnsThread
	dev  netlink.Link
	file *os.File
	hook Hook
	far  int // capture
	tap  *Tap
}

func newGuarded(t *testing.T, model string) *guarded {
	g := &guarded{ns: newNetns(t), hook: Ingress}
	g.ns.silent()
	g.ns.veth("link", "far", nil)
	link, far := g.ns.up("link"), g.ns.up("far")
	g.far = g.ns.capture(far)
	switch model {
	case "tc", "bridge":
		g.file = g.ns.tap("tap")
		g.dev = g.ns.up("tap")
		g.ns.clsact(g.dev)
	case "macvtap":
		g.hook = Egress
		g.file = g.ns.macvtap("tap", link)
		g.dev = g.ns.up("tap")
		g.ns.clsact(g.dev)
	}
	switch model {
	case "tc":
		g.ns.redirect(g.dev, link)
	case "bridge":
		if err := g.ns.h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}); err != nil {
			t.Fatal(err)
		}
		br := g.ns.link("br")
		for _, l := range []netlink.Link{link, g.dev} {
			if err := g.ns.h.LinkSetMaster(l, br); err != nil {
				t.Fatal(err)
			}
		}
		// The VM has the link's address, so the link gets another one.
		if err := g.ns.h.LinkSetHardwareAddr(link, otherMAC); err != nil {
			t.Fatal(err)
		}
		g.ns.up("br")
	}
	g.attach(t)
	g.awaitPath(t)
	return g
}

// awaitPath sends until something arrives: a link that has just been set up drops
// what is sent until the kernel has looked at its carrier.
func (g *guarded) awaitPath(t *testing.T) {
	t.Helper()
	hello := ipv4(own4, other4, protoUDP, 0, udp(1000, 53, "hello"))
	for range 200 {
		send(t, g.file, nil, hello)
		ready := []unix.PollFd{{Fd: int32(g.far), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, 50); err == nil && n == 1 {
			send(t, g.file, nil, honest)
			heard(t, g.far, honest)
			return
		}
	}
	t.Fatal("nothing that a VM sends arrives")
}

func (g *guarded) attach(t *testing.T) {
	t.Helper()
	tap, err := AttachTap(g.ns.h, g.dev, g.hook, ownRules)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close() })
	g.tap = tap
}

// What a VM writes to its device, by each model: what the table says leaves it, and
// nothing else.
func TestNothingForgedLeavesTheTap(t *testing.T) {
	for _, model := range []string{"tc", "bridge", "macvtap"} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			g := newGuarded(t, model)
			want, drops := map[string]string{}, uint64(0)
			for _, c := range cases {
				if len(c.frame) < 15 {
					continue
				}
				send(t, g.file, nil, c.frame)
				if c.want.drop {
					drops++
				} else {
					want[string(c.frame)] = c.name
				}
			}
			send(t, g.file, nil, honest)
			got := heard(t, g.far, honest)
			for frame := range got {
				if _, ok := want[frame]; !ok {
					t.Errorf("left the tap: %s", name(frame))
				}
			}
			for frame, name := range want {
				if got[frame] != 1 {
					t.Errorf("%s: left the tap %d times", name, got[frame])
				}
			}
			counts, err := g.tap.Counts()
			if err != nil {
				t.Fatal(err)
			}
			if counts.Total() != drops {
				t.Errorf("%d packets counted as dropped, %d were: %v", counts.Total(), drops, counts)
			}
		})
	}
}

func name(frame string) string {
	for _, c := range cases {
		if string(c.frame) == frame {
			return c.name
		}
	}
	return fmt.Sprintf("%x, which nobody sent", frame)
}

// A packet may ask the kernel for a checksum, and the kernel writes it where it is
// told when the packet leaves by a link that cannot.
func TestChecksumsAreNoWayToForge(t *testing.T) {
	if err := ChecksumsChecked(); err != nil {
		t.Skip("this kernel does not say where its packets keep what a VM asks for: ", err)
	}
	tcp4, udp4 := ipv4(own4, other4, protoTCP, 0, make([]byte, 60)), ipv4(own4, other4, protoUDP, 0, udp(1000, 53, "some text, long enough"))
	udp6 := ipv6(own6, other6, protoUDP, udp(1000, 53, "some text, long enough"))
	ns6 := ipv6(own6, allNodes, protoICMPv6, nd(135, other6, lladdr(1, ownMAC)))
	for _, model := range []string{"tc", "macvtap"} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			g := newGuarded(t, model)
			for _, c := range []struct {
				name          string
				frame         []byte
				start, offset uint16
				pass          bool
			}{
				{"tcp", tcp4, 34, 16, true},
				{"udp", udp4, 34, 6, true},
				{"udp over IPv6", udp6, 54, 6, true},
				{"inside a tunnel", udp4, 42, 8, true},
				{"over the IPv4 source", tcp4, 20, 6, false},
				{"over the low half of the IPv4 source", tcp4, 24, 4, false},
				{"over the IPv6 source", udp6, 22, 0, false},
				{"over the source port", udp4, 34, 0, false},
				{"over the destination port", udp6, 54, 2, false},
				{"over the sender of ARP", arp(1, ownMAC, own4, other4), 22, 6, false},
				{"behind ARP", append(arp(1, ownMAC, own4, other4), make([]byte, 8)...), 42, 2, false},
				{"over the target of ND", ns6, 54, 10, false},
				{"ND", ns6, 54, 2, true},
			} {
				send(t, g.file, partial(c.start, c.offset), c.frame)
				send(t, g.file, nil, honest)
				if got := len(heard(t, g.far, honest)) > 0; got != c.pass {
					t.Errorf("%s: left the tap: %v", c.name, got)
				}
			}
		})
	}
}

// The checks of a service that died are found again by the next one, with their
// counts; rules and programs change without a moment of neither.
func TestChecksOutliveTheService(t *testing.T) {
	g := newGuarded(t, "tc")
	forged := ipv4(other4, own4, protoTCP, 0, make([]byte, 20))
	send(t, g.file, nil, forged)
	send(t, g.file, nil, honest)
	heard(t, g.far, honest)
	g.tap.Close()
	send(t, g.file, nil, forged)
	g.attach(t)
	send(t, g.file, nil, forged)
	send(t, g.file, nil, honest)
	if got := heard(t, g.far, honest); len(got) != 0 {
		t.Errorf("%d forged frames left the tap", len(got))
	}
	counts, err := g.tap.Counts()
	if err != nil || counts[IPv4] != 3 {
		t.Errorf("counted %v, %v", counts, err)
	}
	if filters, err := g.ns.h.FilterList(g.dev, uint32(Ingress)); err != nil || countBPF(filters) != 1 {
		t.Errorf("%d programs at the tap, %v", countBPF(filters), err)
	}
	if err := DetachTap(g.ns.h, g.dev, g.hook); err != nil {
		t.Fatal(err)
	}
	if err := DetachTap(g.ns.h, g.dev, g.hook); err != nil {
		t.Errorf("a second time: %v", err)
	}
	send(t, g.file, nil, forged)
	send(t, g.file, nil, honest)
	if got := heard(t, g.far, honest); got[string(forged)] != 1 {
		t.Error("still checked after the checks were taken away")
	}
}

func countBPF(filters []netlink.Filter) (n int) {
	for _, f := range filters {
		if f.Type() == "bpf" {
			n++
		}
	}
	return n
}

// An address that stays allowed is never refused while the others change.
func TestRulesChangeWithoutAGap(t *testing.T) {
	g := newGuarded(t, "tc")
	done := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			rules := ownRules
			if i%2 == 0 {
				rules.Addresses = append(tooMany()[:50], rules.Addresses...)
			}
			if err := g.tap.Update(rules); err != nil {
				done <- err
				return
			}
		}
	}()
	const packets = 5000
	for range packets {
		send(t, g.file, nil, big)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if counts, err := g.tap.Counts(); err != nil || counts.Total() != 0 {
		t.Errorf("refused meanwhile: %v, %v", counts, err)
	}
}
