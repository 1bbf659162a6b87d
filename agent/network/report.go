// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	agentv1 "bulkhead/proto/agent/v1"
	netv1 "bulkhead/proto/net/v1"
)

// maxReported bounds the routes and the neighbours of a report, which has to fit into one answer.
const maxReported = 300

// report reads back what the kernel has of the links.
func (w *work) report() (*agentv1.NetworkReply, error) {
	links, err := whole(w.handle.LinkList)
	if err != nil {
		return nil, err
	}
	reply := &agentv1.NetworkReply{Network: &netv1.Network{}, Problems: w.problems}
	ids, names := map[int]string{}, map[string]string{} // of links, by the index and by the name of the device
	for _, asked := range w.network.GetLinks() {
		index := w.links[asked.GetId()].Attrs().Index
		for _, l := range links {
			if l.Attrs().Index != index {
				continue
			}
			ids[index] = asked.GetId()
			a := l.Attrs()
			names[a.Name] = asked.GetId()
			link := &netv1.Link{
				Id: asked.GetId(), Index: int32(a.Index), Name: a.Name, Kind: "virtio", Mac: a.HardwareAddr.String(),
				Mtu: uint32(a.MTU), Up: a.Flags&net.FlagUp != 0, Noarp: a.RawFlags&unix.IFF_NOARP != 0,
			}
			if link.Addresses, err = w.reportAddresses(l); err != nil {
				return nil, err
			}
			reply.Network.Links = append(reply.Network.Links, link)
		}
	}
	if err := w.reportRoutes(ids, reply.Network); err != nil {
		return nil, err
	}
	if err := w.reportRules(names, reply.Network); err != nil {
		return nil, err
	}
	return reply, w.reportNeighbours(ids, reply.Network)
}

func (w *work) reportAddresses(l netlink.Link) ([]*netv1.Address, error) {
	found, err := whole(func() ([]netlink.Addr, error) { return w.handle.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var list []*netv1.Address
	for _, a := range found {
		addr := &netv1.Address{
			Prefix: a.IPNet.String(), Label: a.Label, NoPrefixRoute: a.Flags&unix.IFA_F_NOPREFIXROUTE != 0,
			Scope: scopeNames[netlink.Scope(a.Scope)],
		}
		if a.Peer != nil && !a.Peer.IP.Equal(a.IP) {
			addr.Peer = a.Peer.String()
		}
		if a.Broadcast != nil {
			addr.Broadcast = a.Broadcast.String()
		}
		list = append(list, addr)
	}
	return list, nil
}

func (w *work) reportRoutes(ids map[int]string, into *netv1.Network) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		found, err := whole(func() ([]netlink.Route, error) {
			return w.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return err
		}
		for _, r := range found {
			kind, known := routeTypeNames[r.Type]
			if !known || r.Protocol == unix.RTPROT_KERNEL || r.Table == unix.RT_TABLE_LOCAL || len(into.Routes) == maxReported {
				continue
			}
			route := &netv1.Route{
				Link: ids[r.LinkIndex], Scope: scopeNames[r.Scope], Type: kind, Protocol: r.Protocol.String(),
				Metric: uint32(r.Priority), Table: uint32(r.Table), Onlink: r.Flags&int(netlink.FLAG_ONLINK) != 0, Mtu: uint32(r.MTU),
				Tos: uint32(r.Tos), Metrics: readMetrics(&r),
				Gateway: hop(r.Gw, r.Via), Destination: destination(r.Dst, family),
			}
			if r.Src != nil {
				route.Source = r.Src.String()
			}
			for _, h := range r.MultiPath {
				route.NextHops = append(route.NextHops, &netv1.NextHop{
					Gateway: hop(h.Gw, h.Via), Link: ids[h.LinkIndex], Weight: uint32(h.Hops) + 1, Onlink: h.Flags&int(netlink.FLAG_ONLINK) != 0,
				})
			}
			into.Routes = append(into.Routes, route)
		}
	}
	return nil
}

func hop(gateway net.IP, via netlink.Destination) string {
	if v, ok := via.(*netlink.Via); ok {
		return v.Addr.String()
	}
	if gateway == nil {
		return ""
	}
	return gateway.String()
}

func destination(dst *net.IPNet, family int) string {
	switch {
	case dst != nil:
		return dst.String()
	case family == netlink.FAMILY_V6:
		return "::/0"
	default:
		return "0.0.0.0/0"
	}
}

func (w *work) reportNeighbours(ids map[int]string, into *netv1.Network) error {
	found, err := whole(func() ([]netlink.Neigh, error) { return w.handle.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	for _, n := range found {
		if n.State&netlink.NUD_PERMANENT == 0 || ids[n.LinkIndex] == "" || n.IP == nil || n.IP.IsMulticast() || len(into.Neighbours) == maxReported {
			continue
		}
		into.Neighbours = append(into.Neighbours, &netv1.Neighbour{Address: n.IP.String(), Mac: n.HardwareAddr.String(), Link: ids[n.LinkIndex]})
	}
	return nil
}
