// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	agentv1 "bulkhead/proto/agent/v1"
)

// A card is found by the address that it was made with, which stays readable
// whatever it is called and whatever address it has now (IFLA_PERM_ADDRESS).

func permanent(l netlink.Link) string {
	mac := l.Attrs().PermHWAddr
	if len(mac) == 0 {
		mac = l.Attrs().HardwareAddr
	}
	return mac.String()
}

// isCard tells whether a device is one of the machine's and no virtual one that a container made.
func isCard(l netlink.Link) bool { return l.Type() == "device" && l.Attrs().EncapType == "ether" }

func findCard(links []netlink.Link, mac string) netlink.Link {
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return isCard(l) && permanent(l) == mac })
	if i < 0 {
		return nil
	}
	return links[i]
}

func canonical(mac string) string {
	parsed, err := net.ParseMAC(mac)
	if err != nil {
		return mac
	}
	return parsed.String()
}

// gather waits until every card is there and brings those that have come since into the
// namespace that the network is in: new ones appear in the agent's own.
func (n *Network) gather(ctx context.Context, nics []*agentv1.GuestNic) error {
	var there []netlink.Link
	err := inside(n.home, func() (err error) {
		there, err = listLinks()
		return err
	})
	if err != nil {
		return err
	}
	var coming []string
	for _, nic := range nics {
		if mac := canonical(nic.GetMac()); findCard(there, mac) == nil {
			coming = append(coming, mac)
		}
	}
	if len(coming) == 0 {
		return nil
	}
	found, err := awaitCards(ctx, coming)
	if err != nil || n.home == nil {
		return err
	}
	for _, l := range found {
		if err := move(l, n.home); err != nil {
			return err
		}
	}
	return nil
}

// move takes a device into another namespace, under a name that none there has.
func move(l netlink.Link, to *os.File) error {
	err := netlink.LinkSetDown(l)
	if err == nil {
		err = netlink.LinkSetName(l, "moving"+strconv.Itoa(l.Attrs().Index))
	}
	if err == nil {
		err = netlink.LinkSetNsFd(l, int(to.Fd()))
	}
	if err != nil {
		return fmt.Errorf("moving the network card %s into the container's network namespace: %w", permanent(l), err)
	}
	return nil
}

// awaitCards waits until the agent's namespace has cards with these addresses.
func awaitCards(ctx context.Context, macs []string) ([]netlink.Link, error) {
	changes, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	if err := netlink.LinkSubscribe(changes, done); err != nil {
		return nil, fmt.Errorf("listening for network cards: %w", err)
	}
	defer func() {
		close(done)
		go func() {
			for range changes { // until the listener has ended
			}
		}()
	}()
	for {
		links, err := listLinks()
		if err != nil {
			return nil, err
		}
		var found []netlink.Link
		var missing []string
		for _, mac := range macs {
			if l := findCard(links, mac); l != nil {
				found = append(found, l)
			} else {
				missing = append(missing, mac)
			}
		}
		if len(missing) == 0 {
			return found, nil
		}
		select {
		case _, ok := <-changes:
			if !ok {
				return nil, errors.New("listening for network cards: the kernel's messages have ended")
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the network card %s: %w", strings.Join(missing, ", "), ctx.Err())
		}
	}
}

// listLinks lists the devices of the thread's namespace. A list that a change cut short is asked for again.
func listLinks() ([]netlink.Link, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a socket of the guest's network: %w", err)
	}
	defer h.Close()
	return whole(h.LinkList)
}

// dumpTries is how often a list is asked for that changes while it is read.
const dumpTries = 5

func whole[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		found, err := list()
		if err == nil {
			return found, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumpTries {
			return nil, fmt.Errorf("reading the guest's network: %w", err)
		}
	}
}

// send moves the devices that are this package's from one namespace to another, and leaves nothing
// of it in the first: rules, and routes that lead nowhere, go with no device.
func (n *Network) send(from, to *os.File) error {
	return inside(from, func() error {
		for _, rule := range n.made.rules {
			_ = netlink.RuleDel(rule)
		}
		for _, route := range n.made.routes {
			_ = netlink.RouteDel(route)
		}
		links, err := listLinks()
		if err != nil {
			return err
		}
		for _, mac := range n.made.devices {
			l := findCard(links, mac)
			if l == nil {
				continue // it has been unplugged
			}
			if err := move(l, to); err != nil {
				return err
			}
		}
		return nil
	})
}

// find looks the devices of the links up, and puts those of links that are no
// more out of the way.
func (w *work) find(nics []*agentv1.GuestNic) error {
	links, err := whole(w.handle.LinkList)
	if err != nil {
		return err
	}
	w.links = map[string]netlink.Link{}
	for _, nic := range nics {
		l := findCard(links, canonical(nic.GetMac()))
		if l == nil {
			return fmt.Errorf("the network card %s has gone", nic.GetMac())
		}
		w.links[nic.GetLink()] = l
		if before := w.made.devices[nic.GetLink()]; before != "" && before != canonical(nic.GetMac()) { // the link has another card now
			if old := findCard(links, before); old != nil {
				w.retire(old, w.made.addresses[nic.GetLink()])
			}
			delete(w.made.addresses, nic.GetLink())
		}
		w.made.devices[nic.GetLink()] = canonical(nic.GetMac())
	}
	for id, mac := range w.made.devices {
		if w.links[id] != nil {
			continue
		}
		if l := findCard(links, mac); l != nil {
			w.retire(l, w.made.addresses[id])
		}
		delete(w.made.devices, id)
		delete(w.made.addresses, id)
	}
	return nil
}

// retire switches a device off that is about to be unplugged, and frees its name and
// addresses. It may have gone already.
func (w *work) retire(l netlink.Link, addresses map[string]*netlink.Addr) {
	for _, a := range addresses {
		_ = w.handle.AddrDel(l, a)
	}
	if w.handle.LinkSetDown(l) == nil {
		_ = w.handle.LinkSetName(l, passingName(l))
	}
}

// passingName is one that no link of the host has and that is a device's alone.
func passingName(l netlink.Link) string { return fmt.Sprintf("bulkhead%d", l.Attrs().Index) }

// maxName is the longest name of a device (IFNAMSIZ - 1).
const maxName = 15

func validName(name string) bool {
	return name != "" && len(name) <= maxName && name != "." && name != ".." && name != "lo" && !strings.ContainsAny(name, "/: \t\n\x00")
}
