// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func link(name string, edit func(*netlink.LinkAttrs)) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Index, a.Name, a.EncapType, a.RawFlags = 5, name, "ether", unix.IFF_UP
	if edit != nil {
		edit(&a)
	}
	return a
}

// The kernels of tests have neither a spare physical device nor every kind.
func TestWhichLinksAreTaken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		link    netlink.Link
		taken   bool
		problem string
	}{
		{"veth", &netlink.Veth{LinkAttrs: link("eth0", nil)}, true, ""},
		{"ipvlan", &netlink.IPVlan{LinkAttrs: link("ip0", nil)}, true, ""},
		{"dummy", &netlink.Dummy{LinkAttrs: link("d0", nil)}, true, ""},
		{"a physical device", &netlink.Device{LinkAttrs: link("eth1", nil)}, false, "eth1 is a physical device, which is never taken"},
		{"one with a kind and a bus", &netlink.GenericLink{LinkAttrs: link("vf0", func(a *netlink.LinkAttrs) { a.ParentDev = "0000:01:00.0" }), LinkType: "veth"}, false, "vf0 is a physical device"},
		{"a kind without frames", &netlink.Wireguard{LinkAttrs: link("wg0", func(a *netlink.LinkAttrs) { a.EncapType = "none" })}, false, "wg0 of kind wireguard has no Ethernet frames"},
		{"the loopback device", &netlink.Device{LinkAttrs: link("lo", func(a *netlink.LinkAttrs) { a.RawFlags |= unix.IFF_LOOPBACK })}, false, ""},
		{"a tunnel that every namespace has", &netlink.Iptun{LinkAttrs: link("tunl0", func(a *netlink.LinkAttrs) { a.RawFlags, a.EncapType = 0, "ipip" })}, false, ""},
		{"such a tunnel that is used", &netlink.Iptun{LinkAttrs: link("tunl0", func(a *netlink.LinkAttrs) { a.EncapType = "ipip" })}, false, "tunl0 of kind ipip has no Ethernet frames"},
		{"one that the service made", &netlink.Tuntap{LinkAttrs: link("bhtap5", func(a *netlink.LinkAttrs) { a.Alias = OwnAlias + "x" })}, false, ""},
		{"a port of somebody's bridge", &netlink.Veth{LinkAttrs: link("p0", func(a *netlink.LinkAttrs) { a.MasterIndex = 9 })}, false, ""},
		{"a port of the service's bridge", &netlink.Veth{LinkAttrs: link("p0", func(a *netlink.LinkAttrs) { a.MasterIndex = 8 })}, true, ""},
		{"a macvlan on the host's device", &netlink.Macvlan{LinkAttrs: link("mv0", func(a *netlink.LinkAttrs) { a.ParentIndex, a.NetNsID = 3, 0 })}, true, ""},
		{"a macvlan on another link here", &netlink.Macvlan{LinkAttrs: link("mv0", func(a *netlink.LinkAttrs) { a.ParentIndex = 3 })}, false, "mv0 stands on link eth0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := &reading{names: map[int]string{3: "eth0"}, own: map[int]bool{8: true}}
			if got := r.wanted(c.link); got != c.taken {
				t.Errorf("taken: %t", got)
			}
			if said := strings.Join(r.problems, " "); !strings.Contains(said, c.problem) || (c.problem == "") != (said == "") {
				t.Errorf("it says %q, want %q", said, c.problem)
			}
		})
	}
}
