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

// setRules makes the rules of policy routing those of the host, beside the three that
// every namespace has and those that the container made.
func (w *work) setRules() {
	kept := map[string]*netlink.Rule{}
	for _, r := range w.network.GetRules() {
		rule, err := w.ruleOf(r)
		if err == nil {
			err = w.handle.RuleAdd(rule)
		}
		if err == nil || errors.Is(err, unix.EEXIST) {
			kept[identity(r)] = rule
			continue
		}
		w.refused(err, "the rule of priority %d", r.GetPriority())
	}
	w.made.rules = kept
}

func (w *work) ruleOf(r *netv1.Rule) (*netlink.Rule, error) {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table = unix.AF_INET, int(r.GetPriority()), int(r.GetTable())
	rule.Mark, rule.Invert = r.GetMark(), r.GetInvert()
	if r.GetIpv6() {
		rule.Family = unix.AF_INET6
	}
	if r.GetMark() != 0 {
		mask := r.GetMarkMask()
		rule.Mask = &mask
	}
	for _, side := range []struct {
		text string
		to   **net.IPNet
	}{{r.GetSource(), &rule.Src}, {r.GetDestination(), &rule.Dst}} {
		if side.text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(side.text)
		if err != nil {
			return nil, err
		}
		*side.to = ipNet(prefix)
	}
	for _, side := range []struct {
		link string
		to   *string
	}{{r.GetInLink(), &rule.IifName}, {r.GetOutLink(), &rule.OifName}} {
		if side.link == "" {
			continue
		}
		l := w.links[side.link]
		if l == nil {
			return nil, fmt.Errorf("it names a link %q that is none", side.link)
		}
		*side.to = l.Attrs().Name
	}
	return rule, nil
}

// reportRules reads back the rules, but the three that every namespace has.
func (w *work) reportRules(ids map[string]string, into *netv1.Network) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		found, err := whole(func() ([]netlink.Rule, error) { return w.handle.RuleList(family) })
		if err != nil {
			return err
		}
		for _, r := range found {
			if r.Priority <= 0 || r.Priority >= 32766 || len(into.Rules) == maxReported {
				continue
			}
			rule := &netv1.Rule{
				Priority: uint32(r.Priority), Ipv6: family == unix.AF_INET6, Table: uint32(r.Table), Mark: r.Mark, Invert: r.Invert,
				InLink: ids[r.IifName], OutLink: ids[r.OifName],
			}
			if r.Mask != nil {
				rule.MarkMask = *r.Mask
			}
			if r.Src != nil {
				rule.Source = r.Src.String()
			}
			if r.Dst != nil {
				rule.Destination = r.Dst.String()
			}
			into.Rules = append(into.Rules, rule)
		}
	}
	return nil
}
