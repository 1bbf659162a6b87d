// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
)

// setAddresses gives the devices their addresses, in the order of the host: the first of a
// subnet is the one that the kernel sends from.
func (w *work) setAddresses() {
	for _, link := range w.network.GetLinks() {
		l := w.links[link.GetId()]
		kept := map[string]*netlink.Addr{}
		for _, a := range link.GetAddresses() {
			addr, err := addressOf(a, l.Attrs().Name)
			if err == nil {
				kept[keyOf(a)] = addr
				set := *addr // the library writes into it
				err = w.handle.AddrReplace(l, &set)
			}
			w.refused(err, "the address %s on %s", a.GetPrefix(), l.Attrs().Name)
		}
		w.made.addresses[link.GetId()] = kept
	}
}

// keyOf tells addresses apart that can be on a device beside each other.
func keyOf(a *netv1.Address) string { return a.GetPrefix() + " " + a.GetPeer() }

// addressOf is the kernel's form of an address. The host has made sure that nobody
// else has it, and what an IPv6 address would wait for to find that out again would
// keep the container's program from its network for a second.
func addressOf(a *netv1.Address, device string) (*netlink.Addr, error) {
	prefix, err := netip.ParsePrefix(a.GetPrefix())
	if err != nil {
		return nil, err
	}
	addr := &netlink.Addr{IPNet: ipNet(prefix), Label: a.GetLabel()}
	if prefix.Addr().Is6() {
		addr.Flags |= unix.IFA_F_NODAD
		addr.Label = ""
	}
	if addr.Label == device {
		addr.Label = ""
	}
	if a.GetNoPrefixRoute() {
		addr.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	if a.GetPeer() != "" {
		peer, err := netip.ParsePrefix(a.GetPeer())
		if err != nil {
			return nil, err
		}
		addr.Peer = ipNet(peer)
	}
	addr.Broadcast = net.IPv4zero // of the library: none
	if a.GetBroadcast() != "" {
		if addr.Broadcast = net.ParseIP(a.GetBroadcast()).To4(); addr.Broadcast == nil {
			return nil, fmt.Errorf("%q is no broadcast address", a.GetBroadcast())
		}
	}
	scope, err := scopeOf(a.GetScope())
	addr.Scope = int(scope)
	return addr, err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
