// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/binary"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/config"
	netv1 "bulkhead/proto/net/v1"
)

// ipFrame is an IPv4 packet from an address, with a text in UDP.
func ipFrame(mac, from, text string) []byte {
	src, _ := net.ParseMAC(mac)
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, src...)
	n := 28 + len(text)
	f = append(f, 8, 0, 0x45, 0, byte(n>>8), byte(n), 0, 0, 0, 0, 64, 17, 0, 0)
	f = append(append(f, net.ParseIP(from).To4()...), 10, 9, 0, 1)
	var sum uint32 // a bridge of a host with a packet filter looks at it
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(f[24:], ^uint16(sum+sum>>16))
	f = append(f, 0x10, 0, 0x20, 0, byte((8+len(text))>>8), byte(8+len(text)), 0, 0)
	f = append(f, text...)
	return append(f, make([]byte, max(0, 60-len(f)))...)
}

// What the service attaches is guarded from the first frame, follows the addresses of
// the link, is counted, and goes with the detach; by every model.
func TestTheServiceGuardsWhatItAttaches(t *testing.T) {
	const mac, own, later, foreign = "02:00:00:00:00:01", "10.9.0.2", "10.9.0.3", "10.9.0.66"
	for _, model := range []string{"tc", "bridge", "macvtap"} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(d *Deps) { d.Guard = nil; d.Config.Model = model }).start()
			inside, outside := newSpace(t), newSpace(t)
			inside.veth("eth0", outside, "out0")
			inside.run("ip link set eth0 address " + mac + " up; ip addr add " + own + "/24 dev eth0")
			before := inside.state()
			link := r.attach("box", inside).Network.Links[0]
			tap, far := r.open("box", link.Id)[0], outside.packets("out0")
			send := func(from, text string) {
				t.Helper()
				if _, err := tap.Write(withHeader(ipFrame(mac, from, text))); err != nil {
					t.Fatal(err)
				}
			}
			awaitPath(t, far, func() { send(own, "is it there") })
			send(foreign, "forged")
			send(own, "honest")
			if text := neverBefore(t, far, "forged", "honest"); text != "" {
				t.Error(text)
			}
			if s := call[netv1.StatsReply](r, "stats", &netv1.StatsRequest{Sandbox: "box"}); s.Nics[0].Spoofed < 1 {
				t.Errorf("forged packets are not counted: %v", s)
			}
			inside.run("ip addr add " + later + "/24 dev eth0")
			call[netv1.InspectReply](r, "inspect", &netv1.InspectRequest{Sandbox: "box"}) // it looks
			awaitPath(t, far, func() { send(later, "a later address") })

			r.stop()
			r.start() // the next one finds the checks of the last
			send(foreign, "forged")
			send(own, "after a restart")
			if text := neverBefore(t, far, "forged", "after a restart"); text != "" {
				t.Error(text)
			}
			r.detach("box")
			inside.run("ip addr del " + later + "/24 dev eth0")
			if after := inside.state(); after != before {
				t.Errorf("detach leaves the namespace otherwise than it was:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func TestAPolicyMayAllowMore(t *testing.T) {
	const mac = "02:00:00:00:00:01"
	for name, policy := range map[string]*netv1.Policy{
		"any":    {AllowSpoofing: true},
		"a list": {AllowedAddresses: []string{"10.9.0.64/26"}, AllowedMacs: []string{"02:00:00:00:00:77"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(d *Deps) { d.Guard = nil }).start()
			inside, outside := newSpace(t), newSpace(t)
			inside.veth("eth0", outside, "out0")
			inside.run("ip link set eth0 address " + mac + " up; ip addr add 10.9.0.2/24 dev eth0")
			a := call[netv1.AttachReply](r, "attach", &netv1.AttachRequest{Sandbox: "box", Namespace: &netv1.Namespace{Pid: inside.pid()}, Policy: policy})
			tap, far := r.open("box", a.Attachment.Network.Links[0].Id)[0], outside.packets("out0")
			awaitPath(t, far, func() { tap.Write(withHeader(ipFrame("02:00:00:00:00:77", "10.9.0.66", "from a list"))) })
			r.detach("box")
		})
	}
}

// A container may ask for more checks than its host makes, and for fewer.
func TestAContainersPolicyComesBeforeTheHosts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		protection  bool
		asked       *netv1.Policy
		allow, deny bool
	}{
		{true, nil, false, true},
		{true, &netv1.Policy{AllowSpoofing: true}, true, false},
		{true, &netv1.Policy{DenySpoofing: true}, false, true},
		{false, nil, true, false},
		{false, &netv1.Policy{AllowSpoofing: true}, true, false},
		{false, &netv1.Policy{DenySpoofing: true}, false, true},
	} {
		s := &Service{cfg: config.Network{Model: "tc", Queues: 8, SpoofProtection: c.protection}}
		if p, err := s.policy(c.asked); err != nil || p.AllowSpoofing != c.allow || p.DenySpoofing != c.deny {
			t.Errorf("spoof_protection = %t, and %v: in force is %v, %v", c.protection, c.asked, p, err)
		}
	}
	s := &Service{cfg: config.Default().Network}
	if _, err := s.policy(&netv1.Policy{AllowSpoofing: true, DenySpoofing: true}); bus.ReasonOf(err) != bus.InvalidArgument {
		t.Errorf("both at once: %v", err)
	}
}

// awaitPath sends until something arrives: a link that has just been set up drops what
// is sent until the kernel has looked at its carrier, and changes take a moment.
func awaitPath(t *testing.T, far *os.File, send func()) {
	t.Helper()
	buf := make([]byte, 2048)
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		send()
		_ = far.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		for {
			n, err := far.Read(buf)
			if err != nil {
				break
			}
			if n > 30 && buf[12] == 8 && buf[13] == 0 {
				return
			}
		}
	}
	t.Fatal("nothing that a VM sends arrives")
}

// neverBefore reads until text comes and tells if never came before.
func neverBefore(t *testing.T, f *os.File, never, text string) string {
	t.Helper()
	_ = f.SetReadDeadline(time.Now().Add(deadline))
	buf := make([]byte, 2048)
	for {
		n, err := f.Read(buf)
		if err != nil {
			t.Fatalf("%q does not come: %v", text, err)
		}
		switch got := string(buf[:n]); {
		case strings.Contains(got, never):
			return never + " left the tap"
		case strings.Contains(got, text):
			return ""
		}
	}
}
