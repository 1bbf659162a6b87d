// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
)

// routes reads the routes of all tables but the one of local addresses, without
// those that the kernel made itself for an address.
func (r *reading) routes() ([]*netv1.Route, error) {
	all, err := r.nl.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("read the routes: %w", err)
	}
	var found []*netv1.Route
	for _, route := range all {
		if route.Table == unix.RT_TABLE_LOCAL || route.Protocol == unix.RTPROT_KERNEL || route.Flags&unix.RTM_F_CLONED != 0 {
			continue
		}
		if out := r.route(route); out != nil {
			found = append(found, out)
		}
	}
	return found, nil
}

var routeTypes = map[int]string{
	unix.RTN_UNICAST: "unicast", unix.RTN_BLACKHOLE: "blackhole",
	unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit",
}

// route is nil for one that the VM cannot have.
func (r *reading) route(route netlink.Route) *netv1.Route {
	out := &netv1.Route{
		Destination: destination(route), Type: routeTypes[route.Type], Scope: scope(int(route.Scope)),
		Protocol: route.Protocol.String(), Metric: uint32(route.Priority), Table: uint32(route.Table),
		Onlink: route.Flags&unix.RTNH_F_ONLINK != 0, Mtu: uint32(route.MTU), Tos: uint32(route.Tos),
		Gateway: gateway(route.Gw, route.Via), Metrics: metrics(route),
	}
	if route.Src != nil {
		out.Source = route.Src.String()
	}
	switch {
	case out.Type == "":
		r.problem("route %s in table %d is of a type (%d) that is not passed to the VM", out.Destination, route.Table, route.Type)
		return nil
	case route.Encap != nil || route.MPLSDst != nil || route.NewDst != nil:
		r.problem("route %s in table %d encapsulates, which is not passed to the VM", out.Destination, route.Table)
		return nil
	case route.Congctl != "":
		r.problem("route %s in table %d names a congestion control, which the VM chooses itself", out.Destination, route.Table)
	}
	if out.Type != "unicast" {
		return out
	}
	for _, hop := range route.MultiPath {
		id, ok := r.ids[hop.LinkIndex]
		if !ok {
			continue
		}
		out.NextHops = append(out.NextHops, &netv1.NextHop{
			Gateway: gateway(hop.Gw, hop.Via), Link: id, Weight: uint32(hop.Hops) + 1,
			Onlink: hop.Flags&unix.RTNH_F_ONLINK != 0,
		})
	}
	if len(route.MultiPath) > 0 {
		if len(out.NextHops) == 0 {
			return nil
		}
		return out
	}
	id, ok := r.ids[route.LinkIndex]
	if !ok {
		if name := r.names[route.LinkIndex]; name != "lo" {
			r.problem("route %s goes out by link %s, which the VM does not have", out.Destination, name)
		}
		return nil
	}
	out.Link = id
	return out
}

func destination(route netlink.Route) string {
	if route.Dst != nil && route.Dst.IP != nil {
		return route.Dst.String()
	}
	if route.Family == unix.AF_INET6 {
		return "::/0"
	}
	return "0.0.0.0/0"
}

// gateway is the next hop's address, of whichever family.
func gateway(gw net.IP, via netlink.Destination) string {
	if gw != nil {
		return gw.String()
	}
	if v, ok := via.(*netlink.Via); ok && v != nil && v.Addr != nil {
		return v.Addr.String()
	}
	return ""
}

// metrics are those that differ from the kernel's default, but the MTU.
func metrics(route netlink.Route) map[string]uint32 {
	found := map[string]uint32{}
	for _, m := range []struct {
		name  string
		value int
	}{
		{"window", route.Window},
		{"rtt", route.Rtt},
		{"rttvar", route.RttVar},
		{"ssthresh", route.Ssthresh},
		{"cwnd", route.Cwnd},
		{"advmss", route.AdvMSS},
		{"reordering", route.Reordering},
		{"hoplimit", route.Hoplimit},
		{"initcwnd", route.InitCwnd},
		{"features", route.Features},
		{"rto_min", route.RtoMin},
		{"initrwnd", route.InitRwnd},
		{"quickack", route.QuickACK},
		{"fastopen_no_cookie", route.FastOpenNoCookie},
	} {
		if m.value != 0 {
			found[m.name] = uint32(m.value)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found
}

// rules reads the rules of policy routing, without those that every namespace
// has: local, main and default.
func (r *reading) rules() ([]*netv1.Rule, error) {
	var found []*netv1.Rule
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := r.nl.RuleList(family)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without the family, or without rules
		}
		if err != nil {
			return nil, fmt.Errorf("read the rules of policy routing: %w", err)
		}
		for _, rule := range all {
			if usual(rule) {
				continue
			}
			if out := r.rule(rule, family == unix.AF_INET6); out != nil {
				found = append(found, out)
			}
		}
	}
	return found, nil
}

func usual(rule netlink.Rule) bool {
	plain := rule.Src == nil && rule.Dst == nil && rule.Mark == 0 && rule.IifName == "" && rule.OifName == ""
	switch rule.Priority {
	case -1, 0:
		return plain && rule.Table == unix.RT_TABLE_LOCAL
	case 32766:
		return plain && rule.Table == unix.RT_TABLE_MAIN
	case 32767:
		return plain && rule.Table == unix.RT_TABLE_DEFAULT
	}
	return false
}

// rule is nil for one that the VM cannot have.
func (r *reading) rule(rule netlink.Rule, ipv6 bool) *netv1.Rule {
	priority := max(rule.Priority, 0)
	if rule.Type != unix.RTN_UNICAST && rule.Type != 0 || rule.Goto >= 0 || rule.TunID != 0 || rule.Dport != nil || rule.Sport != nil ||
		rule.IPProto != 0 || rule.UIDRange != nil || rule.SuppressPrefixlen >= 0 || rule.SuppressIfgroup >= 0 {
		r.problem("the rule of priority %d of policy routing asks for more than source, destination, mark and link, and is not passed to the VM", priority)
		return nil
	}
	out := &netv1.Rule{Priority: uint32(priority), Ipv6: ipv6, Table: uint32(rule.Table), Mark: rule.Mark, Invert: rule.Invert}
	if rule.Mask != nil {
		out.MarkMask = *rule.Mask
	}
	if rule.Src != nil {
		out.Source = rule.Src.String()
	}
	if rule.Dst != nil {
		out.Destination = rule.Dst.String()
	}
	for _, side := range []struct {
		name string
		to   *string
	}{{rule.IifName, &out.InLink}, {rule.OifName, &out.OutLink}} {
		if side.name == "" {
			continue
		}
		if *side.to = r.idOf(side.name); *side.to == "" {
			r.problem("the rule of priority %d of policy routing names link %s, which the VM does not have", priority, side.name)
			return nil
		}
	}
	return out
}

func (r *reading) idOf(name string) string {
	for index, n := range r.names {
		if n == name {
			return r.ids[index]
		}
	}
	return ""
}
