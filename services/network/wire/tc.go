// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Priority is that of the filters that join a link and its tap. Those of a guard
// come before them, with a smaller number.
const Priority = 25000

// redirect sends every frame that comes in by one device out by the other:
//
//	tc filter add dev FROM ingress protocol all prio 25000 u32 match u32 0 0 action mirred egress redirect dev TO
func (w *Wire) redirect(from, to func() (netlink.Link, error)) error {
	source, err := from()
	if err != nil {
		return err
	}
	target, err := to()
	if err != nil {
		return err
	}
	there, err := w.redirection(source)
	if err != nil || there != nil {
		return err
	}
	attrs := netlink.FilterAttrs{
		LinkIndex: source.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS,
		Priority: Priority, Protocol: unix.ETH_P_ALL,
	}
	action := []netlink.Action{&netlink.MirredAction{
		ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN},
		MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: target.Attrs().Index,
	}}
	// u32 is the older one of the two classifiers that can match everything, and
	// in more kernels; some have only the other.
	err = w.NS.Netlink().FilterAdd(&netlink.U32{FilterAttrs: attrs, Actions: action})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		err = w.NS.Netlink().FilterAdd(&netlink.MatchAll{FilterAttrs: attrs, Actions: action})
	}
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("this kernel lacks traffic control's redirection (NET_CLS_U32 or NET_CLS_MATCHALL, and NET_ACT_MIRRED); load cls_u32 and act_mirred, or choose another model: %w", err)
	}
	return err
}

// redirection is our filter of a device; nil when it has none.
func (w *Wire) redirection(l netlink.Link) (netlink.Filter, error) {
	filters, err := w.NS.Netlink().FilterList(l, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil, fmt.Errorf("list the filters of %s: %w", l.Attrs().Name, err)
	}
	for _, f := range filters {
		if f.Attrs().Priority == Priority {
			return f, nil
		}
	}
	return nil, nil
}

// dropRedirect removes our filter from the link; that of the tap goes with it.
func (w *Wire) dropRedirect() error {
	if w.NIC.Model != ModelTC {
		return nil
	}
	l, err := w.link()
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	filter, err := w.redirection(l)
	if err != nil || filter == nil {
		return err
	}
	// Without a handle, all of that priority. The kernel compares the kind.
	err = w.NS.Netlink().FilterDel(&netlink.GenericFilter{FilterType: filter.Type(), FilterAttrs: netlink.FilterAttrs{
		LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS,
		Priority: Priority, Protocol: unix.ETH_P_ALL,
	}})
	if err == nil {
		return nil
	}
	// It may have gone meanwhile, with its discipline or its link.
	if left, listErr := w.redirection(l); listErr == nil && left == nil {
		return nil
	}
	return fmt.Errorf("remove the filter from %s: %w", l.Attrs().Name, err)
}

// hasIngress tells whether a link already has a place for filters of what comes
// in. Two of them cannot be, so an existing one is used, and stays.
func hasIngress(nl *netlink.Handle, l netlink.Link) (bool, error) {
	qdiscs, err := nl.QdiscList(l)
	if err != nil {
		return false, fmt.Errorf("list the queueing disciplines of %s: %w", l.Attrs().Name, err)
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" || q.Type() == "ingress" {
			return true, nil
		}
	}
	return false, nil
}

func (w *Wire) linkQdisc() error {
	l, err := w.link()
	if err != nil {
		return err
	}
	return w.addQdisc(l)
}

func (w *Wire) deviceQdisc() error {
	l, err := w.device()
	if err != nil {
		return err
	}
	return w.addQdisc(l)
}

func (w *Wire) addQdisc(l netlink.Link) error {
	found, err := hasIngress(w.NS.Netlink(), l)
	if err != nil || found {
		return err
	}
	err = w.NS.Netlink().QdiscAdd(clsact(l))
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("this kernel lacks the queueing discipline clsact (NET_SCH_INGRESS); load sch_ingress: %w", err)
	}
	return err
}

func (w *Wire) dropLinkQdisc() error {
	if w.NIC.QdiscFound {
		return nil
	}
	l, err := w.link()
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	found, err := hasIngress(w.NS.Netlink(), l)
	if err != nil || !found {
		return err
	}
	err = w.NS.Netlink().QdiscDel(clsact(l))
	if err == nil {
		return nil
	}
	if left, listErr := hasIngress(w.NS.Netlink(), l); listErr == nil && !left {
		return nil
	}
	return fmt.Errorf("remove the queueing discipline from %s: %w", l.Attrs().Name, err)
}

func clsact(l netlink.Link) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func (w *Wire) allMulticast() error {
	if !w.NIC.AllMulticast {
		return nil
	}
	l, err := w.link()
	if err != nil {
		return err
	}
	return w.NS.Netlink().LinkSetAllmulticastOn(l)
}

func (w *Wire) dropAllMulticast() error {
	if !w.NIC.AllMulticast {
		return nil
	}
	l, err := w.link()
	if err == nil {
		err = w.NS.Netlink().LinkSetAllmulticastOff(l)
	}
	if absent(err) {
		return nil
	}
	return err
}
