// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
)

// wantedRoute is a route of the host in the kernel's form.
type wantedRoute struct {
	key   string
	route *netlink.Route
	last  error
}

// setRoutes adds the routes. One can need another, to reach its gateway, so those
// that are refused are tried again for as long as others get in. Where the container has made
// a route to the same place itself, both are there, as the kernel allows.
func (w *work) setRoutes() {
	left := w.wantedRoutes()
	kept := map[string]*netlink.Route{}
	for progress := true; progress && len(left) > 0; {
		progress = false
		var again []wantedRoute
		for _, r := range left {
			adding := *r.route
			r.last = w.handle.RouteAppend(&adding)
			if r.last != nil && !errors.Is(r.last, unix.EEXIST) {
				again = append(again, r)
				continue
			}
			kept[r.key], progress = r.route, true
		}
		left = again
	}
	for _, r := range left {
		w.refused(r.last, "the route to %s", r.route.Dst)
	}
	w.made.routes = kept
}

func (w *work) wantedRoutes() []wantedRoute {
	var list []wantedRoute
	for _, r := range w.network.GetRoutes() {
		if r.GetProtocol() == routerAdvertised {
			continue // the guest hears the router itself
		}
		route, err := w.routeOf(r)
		if err != nil {
			w.refused(err, "the route to %s", r.GetDestination())
			continue
		}
		list = append(list, wantedRoute{key: identity(r), route: route})
	}
	return list
}

func (w *work) routeOf(r *netv1.Route) (*netlink.Route, error) {
	dst, err := netip.ParsePrefix(r.GetDestination())
	if err != nil {
		return nil, err
	}
	route := &netlink.Route{
		Dst: ipNet(dst), Priority: int(r.GetMetric()), Table: int(r.GetTable()), MTU: int(r.GetMtu()), Tos: int(r.GetTos()), Family: familyOf(dst.Addr()),
	}
	if route.Type, err = numberOf(routeTypes, "type of route", r.GetType()); err != nil {
		return nil, err
	}
	if route.Scope, err = scopeOf(r.GetScope()); err != nil {
		return nil, err
	}
	if route.Protocol, err = protocolOf(r.GetProtocol()); err != nil {
		return nil, err
	}
	if err := setMetrics(route, r.GetMetrics()); err != nil {
		return nil, err
	}
	if r.GetSource() != "" {
		if route.Src = net.ParseIP(r.GetSource()); route.Src == nil {
			return nil, fmt.Errorf("%q is no source address", r.GetSource())
		}
	}
	for _, hop := range r.GetNextHops() {
		h := &netlink.NexthopInfo{Hops: max(int(hop.GetWeight()), 1) - 1}
		if h.LinkIndex, err = w.indexOf(hop.GetLink()); err != nil {
			return nil, err
		}
		if h.Gw, h.Via, err = gatewayOf(hop.GetGateway(), dst.Addr()); err != nil {
			return nil, err
		}
		if hop.GetOnlink() {
			h.Flags |= int(netlink.FLAG_ONLINK)
		}
		route.MultiPath = append(route.MultiPath, h)
	}
	if len(route.MultiPath) > 0 {
		return route, nil
	}
	if r.GetLink() != "" {
		if route.LinkIndex, err = w.indexOf(r.GetLink()); err != nil {
			return nil, err
		}
	}
	if route.Gw, route.Via, err = gatewayOf(r.GetGateway(), dst.Addr()); err != nil {
		return nil, err
	}
	if r.GetOnlink() {
		route.Flags |= int(netlink.FLAG_ONLINK)
	}
	return route, nil
}

func (w *work) indexOf(link string) (int, error) {
	l := w.links[link]
	if l == nil {
		return 0, fmt.Errorf("it leads over a link %q that is none", link)
	}
	return l.Attrs().Index, nil
}

// gatewayOf is a next hop's address, in the form for one of the other family where it is that.
func gatewayOf(text string, dst netip.Addr) (net.IP, netlink.Destination, error) {
	if text == "" {
		return nil, nil, nil
	}
	gateway, err := netip.ParseAddr(text)
	if err != nil {
		return nil, nil, err
	}
	ip := net.IP(gateway.AsSlice())
	if gateway.Is4() == dst.Is4() {
		return ip, nil, nil
	}
	return nil, &netlink.Via{AddrFamily: familyOf(gateway), Addr: ip}, nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
