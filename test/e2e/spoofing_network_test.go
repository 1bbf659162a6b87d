// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	netv1 "bulkhead/proto/net/v1"
)

// Whose a frame is: of the link itself, of an allow-list, or of somebody else.
const (
	own = iota
	listed
	foreign
)

const (
	listedMAC, foreignMAC = "02:00:00:00:00:77", "02:00:00:00:00:99"
	listed4, foreign4     = "10.9.0.66", "10.9.0.9"
	listed6, foreign6     = "fd09::42", "fd09::9"
	ownLinkLocal          = "fe80::ff:fe00:1"
)

var sentByGuests = []struct {
	name  string
	whose int
	frame []byte
}{
	{"IPv4", own, udp(wireMAC, wireOwn4, 1000, 7, "its own IPv4")},
	{"IPv6", own, udp(wireMAC, wireOwn6, 1000, 7, "its own IPv6")},
	{"ARP", own, arpAnswer(wireMAC, wireMAC, wireOwn4)},
	{"a neighbour advertisement", own, advertisement(wireMAC, wireOwn6, wireMAC, wireOwn6)},
	{"a DHCP client", own, udp(wireMAC, "0.0.0.0", 68, 67, "who am I")},

	{"a MAC of the list", listed, udp(listedMAC, wireOwn4, 1000, 7, "a MAC of the list")},
	{"IPv4 of the list", listed, udp(wireMAC, listed4, 1000, 7, "IPv4 of the list")},
	{"IPv6 of the list", listed, udp(wireMAC, listed6, 1000, 7, "IPv6 of the list")},
	{"ARP for an address of the list", listed, arpAnswer(wireMAC, listedMAC, listed4)},
	{"a neighbour advertisement for an address of the list", listed, advertisement(wireMAC, wireOwn6, listedMAC, listed6)},

	{"a forged MAC", foreign, udp(foreignMAC, wireOwn4, 1000, 7, "a forged MAC")},
	{"forged IPv4", foreign, udp(wireMAC, foreign4, 1000, 7, "forged IPv4")},
	{"forged IPv6", foreign, udp(wireMAC, foreign6, 1000, 7, "forged IPv6")},
	{"ARP for another's address", foreign, arpAnswer(wireMAC, wireMAC, foreign4)},
	{"ARP for the gateway", foreign, arpAnswer(wireMAC, wireMAC, wireFar4)},
	{"ARP with another's MAC", foreign, arpAnswer(wireMAC, foreignMAC, wireOwn4)},
	{"a neighbour advertisement for another's address", foreign, advertisement(wireMAC, wireOwn6, wireMAC, foreign6)},
	{"a neighbour advertisement with another's MAC", foreign, advertisement(wireMAC, wireOwn6, foreignMAC, wireOwn6)},
	{"a router advertisement", foreign, routerAdvertisement(wireMAC, ownLinkLocal)},
	{"a DHCP server", foreign, udp(wireMAC, wireOwn4, 67, 68, "you are mine")},
	{"a DHCPv6 server", foreign, udp(wireMAC, wireOwn6, 547, 546, "you are mine")},
	{"a VLAN tag", foreign, tagged(wireMAC, wireOwn4, "another's network")},
	{"another protocol", foreign, ether(wireMAC, 0x88cc, []byte("LLDP"))},
}

func TestWhatAVMForgesDoesNotLeaveIt(t *testing.T) {
	t.Parallel()
	h := sharedHost(t)
	for _, c := range []struct {
		name    string
		options map[string]string // annotations of the network
		passes  int               // whose frames at most
	}{
		{"by default", nil, own},
		{"model macvtap", map[string]string{"model": "macvtap"}, own},
		{"model bridge", map[string]string{"model": "bridge"}, own},
		{"with an allow-list", map[string]string{"allowed-macs": listedMAC, "allowed-addresses": "10.9.0.64/26,fd09::40/122"}, listed},
		{"with spoofing allowed", map[string]string{"spoofing": "allow"}, foreign},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			annotations := map[string]string{}
			for name, value := range c.options {
				annotations[netv1.AnnotationPrefix+name] = value
			}
			o, conn, w := newOCI(t, h), dial(t, h), newWire(t)
			id, shared := newID("forger"), t.TempDir()
			spec := w.spec(t, annotations, "sleep", "1000")
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/frames", Type: "bind", Source: shared, Options: []string{"rbind", "ro"}})
			o.launch(id, spec)
			spoofed := func() uint64 {
				t.Helper()
				return nicStats(o, conn, id).Spoofed
			}
			capture, err := w.outside.Capture("far")
			if err != nil {
				t.Fatal(err)
			}
			defer capture.Close()

			text, forged := "", uint64(0)
			for _, f := range sentByGuests {
				text += hex.EncodeToString(f.frame) + "\n"
				if f.whose > c.passes {
					forged++
				}
			}
			if err := os.WriteFile(filepath.Join(shared, "frames"), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			o.do("exec", id, "ping", "-c", "1", "-W", "60", wireFar4) // a link that has just come up loses frames
			before := spoofed()
			o.do("exec", id, "sh", "-c", "netprobe inject eth0 < /frames/frames")
			// When each has either come or been counted, nothing is under way.
			must(t, commandTime, func() error {
				for _, f := range sentByGuests {
					if f.whose <= c.passes && capture.Heard(f.frame) == 0 {
						return fmt.Errorf("%s does not leave the VM", f.name)
					}
				}
				if n := spoofed() - before; n < forged {
					return fmt.Errorf("%d packets are counted as forged instead of %d", n, forged)
				}
				return nil
			})
			for _, f := range sentByGuests {
				if n := capture.Heard(f.frame); f.whose > c.passes && n > 0 {
					t.Errorf("%s has left the VM", f.name)
				}
			}
			if n := spoofed(); c.passes == foreign && n > 0 {
				t.Errorf("%d packets are counted as forged", n)
			}
			o.do("delete", "--force", id)
			must(t, cleanTime, func() error { return w.untouched(t) })
		})
	}
}
