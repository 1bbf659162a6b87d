// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
)

// addresses reads the addresses of every link, by its index.
func (r *reading) addresses() (map[int][]*netv1.Address, error) {
	all, err := r.nl.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("read the addresses: %w", err)
	}
	found := map[int][]*netv1.Address{}
	for _, a := range all {
		if a.IPNet == nil {
			continue
		}
		if a.IP.To4() == nil && a.Flags&unix.IFA_F_TEMPORARY != 0 { // of IPv4 the same bit means secondary
			continue // a privacy address is the kernel's passing choice; the guest's makes its own
		}
		out := &netv1.Address{
			Prefix: a.IPNet.String(), Scope: scope(a.Scope), Label: a.Label,
			NoPrefixRoute: a.Flags&unix.IFA_F_NOPREFIXROUTE != 0,
		}
		if a.Peer != nil && !a.Peer.IP.Equal(a.IP) {
			out.Peer = a.Peer.String()
		}
		if a.Broadcast != nil {
			out.Broadcast = a.Broadcast.String()
		}
		if out.Label == r.names[a.LinkIndex] {
			out.Label = "" // the link's name is what an address has without one
		}
		found[a.LinkIndex] = append(found[a.LinkIndex], out)
	}
	return found, nil
}

// scope names a scope (rtnetlink(7)).
func scope(n int) string {
	switch n {
	case unix.RT_SCOPE_UNIVERSE:
		return "global"
	case unix.RT_SCOPE_SITE:
		return "site"
	case unix.RT_SCOPE_LINK:
		return "link"
	case unix.RT_SCOPE_HOST:
		return "host"
	case unix.RT_SCOPE_NOWHERE:
		return "nowhere"
	}
	return fmt.Sprint(n)
}

// neighbours reads those that somebody set for good.
func (r *reading) neighbours() ([]*netv1.Neighbour, error) {
	all, err := r.nl.NeighList(0, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("read the neighbours: %w", err)
	}
	var found []*netv1.Neighbour
	for _, n := range all {
		if n.State&netlink.NUD_PERMANENT == 0 || r.ids[n.LinkIndex] == "" || n.IP == nil || n.IP.IsMulticast() ||
			n.Family != unix.AF_INET && n.Family != unix.AF_INET6 {
			continue
		}
		found = append(found, &netv1.Neighbour{Address: n.IP.String(), Mac: n.HardwareAddr.String(), Link: r.ids[n.LinkIndex]})
	}
	slices.SortFunc(found, func(a, b *netv1.Neighbour) int {
		return bytes.Compare([]byte(a.Link+" "+a.Address), []byte(b.Link+" "+b.Address))
	})
	return found, nil
}
