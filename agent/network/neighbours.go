// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
)

// setNeighbours makes the static neighbours known.
func (w *work) setNeighbours() {
	kept := map[string]*netlink.Neigh{}
	for _, n := range w.network.GetNeighbours() {
		neigh, err := w.neighbourOf(n)
		if err == nil {
			err = w.handle.NeighSet(neigh)
		}
		w.refused(err, "the neighbour %s", n.GetAddress())
		if err == nil {
			kept[identity(n)] = neigh
		}
	}
	w.made.neighbours = kept
}

func (w *work) neighbourOf(n *netv1.Neighbour) (*netlink.Neigh, error) {
	index, err := w.indexOf(n.GetLink())
	if err != nil {
		return nil, err
	}
	mac, err := net.ParseMAC(n.GetMac())
	if err != nil {
		return nil, err
	}
	neigh := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(n.GetAddress()), HardwareAddr: mac}
	if neigh.IP == nil {
		return nil, &net.ParseError{Type: "IP address", Text: n.GetAddress()}
	}
	neigh.Family = unix.AF_INET
	if neigh.IP.To4() == nil {
		neigh.Family = unix.AF_INET6
	}
	return neigh, nil
}
