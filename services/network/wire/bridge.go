// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The model bridge: the link and the tap are ports of a bridge. A bridge takes
// frames to the address of one of its ports for its own, so the link gets
// another address and the guest has the link's.

func (w *Wire) makeBridge() error {
	nl := w.NS.Netlink()
	b, err := nl.LinkByName(w.NIC.Bridge)
	if absent(err) {
		bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
		bridge.Name, bridge.MTU = w.NIC.Bridge, int(w.MTU)
		if err := nl.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		b, err = nl.LinkByName(w.NIC.Bridge)
	}
	if err != nil {
		return err
	}
	if b.Attrs().Alias == "" && b.Type() == "bridge" {
		if err := nl.LinkSetAlias(b, w.fullAlias()); err != nil {
			return fmt.Errorf("name the bridge's owner: %w", err)
		}
	}
	if b, err = w.own(w.NIC.Bridge); err != nil {
		return err
	}
	if err := w.quiet(b); err != nil {
		return err
	}
	// Both ports get every group; a kernel without snooping does that anyway.
	if err := nl.BridgeSetMcastSnoop(b, false); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("have the bridge pass all multicast: %w", err)
	}
	// The link keeps its addresses, as engines look for them there, and the kernel
	// answers ARP for an address of any interface: without this, it would take on the
	// bridge what is the VM's.
	if err := nl.LinkSetARPOff(b); err != nil {
		return fmt.Errorf("keep the bridge from answering for the VM: %w", err)
	}
	return nl.LinkSetUp(b)
}

// changeMAC gives the link an address that is derived from its own: locally
// administered, so nobody's.
func (w *Wire) changeMAC() error {
	l, err := w.link()
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(w.NIC.LinkMac)
	if err != nil || len(mac) != 6 {
		return fmt.Errorf("the address %q of the link is not Ethernet's", w.NIC.LinkMac)
	}
	if l.Attrs().HardwareAddr.String() != w.NIC.LinkMac {
		return nil
	}
	mac[0] = mac[0]&^1 | 2
	mac[1] ^= 0xbb
	return w.NS.Netlink().LinkSetHardwareAddr(l, mac)
}

func (w *Wire) restoreMAC() error {
	l, err := w.link()
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(w.NIC.LinkMac)
	if err != nil {
		return fmt.Errorf("give the link its address back: %w", err)
	}
	if l.Attrs().HardwareAddr.String() == w.NIC.LinkMac {
		return nil
	}
	return w.NS.Netlink().LinkSetHardwareAddr(l, mac)
}

func (w *Wire) enslave() error {
	b, err := w.own(w.NIC.Bridge)
	if err != nil {
		return err
	}
	for _, find := range []func() (netlink.Link, error){w.link, w.device} {
		l, err := find()
		if err != nil {
			return err
		}
		if l.Attrs().MasterIndex == b.Attrs().Index {
			continue
		}
		if err := w.NS.Netlink().LinkSetMaster(l, b); err != nil {
			return fmt.Errorf("make %s a port of the bridge: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// dropBridge removes the bridge, which frees its ports.
func (w *Wire) dropBridge() error { return w.drop(w.NIC.Bridge) }
