// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
)

// kinds are those of the kernel's virtual links whose frames are Ethernet's and
// go nowhere but where the namespace's own go.
var kinds = []string{"veth", "macvlan", "macvtap", "ipvlan", "ipvtap", "tuntap", "dummy", "bridge", "bond", "team", "vlan", "vxlan", "geneve", "gretap", "ip6gretap", "netkit"}

// stacked are those of them that stand on another link.
var stacked = []string{"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"}

// fallbacks are the tunnels that the kernel makes in each namespace, whether
// wanted or not (Documentation/admin-guide/sysctl/net.rst, fb_tunnels_only_for_init_net).
var fallbacks = []string{"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}

// links reads the links that the VM gets, with their addresses, in order of
// index.
func (r *reading) links() ([]*netv1.Link, []netlink.Link, error) {
	all, err := r.nl.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("read the links: %w", err)
	}
	for _, l := range all {
		r.names[l.Attrs().Index] = l.Attrs().Name
		r.own[l.Attrs().Index] = Own(l)
	}
	var taken []netlink.Link
	for _, l := range all {
		if r.wanted(l) {
			taken = append(taken, l)
			r.ids[l.Attrs().Index] = r.o.ID(l.Attrs().Index)
		}
	}
	slices.SortFunc(taken, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	addresses, err := r.addresses()
	if err != nil {
		return nil, nil, err
	}
	links := make([]*netv1.Link, 0, len(taken))
	for _, l := range taken {
		a := l.Attrs()
		mac := a.HardwareAddr.String()
		if before := r.o.MAC(a.Index); before != "" {
			mac = before
		}
		off, err := r.txChecksumOff(a.Name)
		if err != nil {
			return nil, nil, fmt.Errorf("ask link %s whether it computes checksums: %w", a.Name, err)
		}
		links = append(links, &netv1.Link{
			Id: r.ids[a.Index], Index: int32(a.Index), Name: a.Name, Kind: kindOf(l), Mac: mac,
			Mtu: uint32(a.MTU), Up: a.RawFlags&unix.IFF_UP != 0, Noarp: a.RawFlags&unix.IFF_NOARP != 0,
			TxChecksumOff: off, Addresses: addresses[a.Index],
		})
	}
	return links, taken, nil
}

// wanted judges a link, and says why the VM cannot have it where that is not
// plain.
func (r *reading) wanted(l netlink.Link) bool {
	a := l.Attrs()
	kind := l.Type() // the library's word
	switch {
	case a.RawFlags&unix.IFF_LOOPBACK != 0, Own(l):
		return false
	case a.RawFlags&unix.IFF_UP == 0 && slices.Contains(fallbacks, a.Name):
		return false
	case a.MasterIndex != 0 && !r.own[a.MasterIndex]:
		return false // its master has its traffic
	case kind == "device" || kind == "" || a.ParentDev != "":
		r.problem("link %s is a physical device, which is never taken: give the container a macvlan on it instead", a.Name)
		return false
	case !slices.Contains(kinds, kind) || a.EncapType != "ether":
		r.problem("link %s of kind %s has no Ethernet frames that a VM could be given: the VM does not have it", a.Name, kindOf(l))
		return false
	case slices.Contains(stacked, kind) && a.ParentIndex != 0 && a.NetNsID < 0 && r.names[a.ParentIndex] != "" && r.names[a.ParentIndex] != a.Name:
		r.problem("link %s stands on link %s of the same namespace, all of whose traffic the VM has: make it inside the container", a.Name, r.names[a.ParentIndex])
		return false
	}
	return true
}

// kindOf is the kernel's word for a link's kind.
func kindOf(l netlink.Link) string {
	if kind := l.Type(); kind != "tuntap" {
		return kind
	}
	return "tun"
}
