// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
)

// setLinks names the devices and gives them what is theirs alone.
func (w *work) setLinks() {
	w.rename()
	for _, link := range w.network.GetLinks() {
		w.setLink(link, w.links[link.GetId()])
	}
}

// rename gives every device its name, also where two have each other's. A device is
// down while it is renamed: the kernel wants that, and takes its routes off it.
func (w *work) rename() {
	wrong := map[string]netlink.Link{} // by the name it gets
	for _, link := range w.network.GetLinks() {
		if l := w.links[link.GetId()]; l.Attrs().Name != link.GetName() {
			wrong[link.GetName()] = l
		}
	}
	for _, l := range wrong {
		if _, wanted := wrong[l.Attrs().Name]; wanted {
			w.setName(l, passingName(l))
		}
	}
	for name, l := range wrong {
		w.setName(l, name)
	}
}

func (w *work) setName(l netlink.Link, name string) {
	if l.Attrs().Name == name {
		return
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		w.refused(w.handle.LinkSetDown(l), "to switch %s off, to rename it", l.Attrs().Name)
		l.Attrs().Flags &^= net.FlagUp
	}
	err := w.handle.LinkSetName(l, name)
	w.refused(err, "to rename %s to %s", l.Attrs().Name, name)
	if err == nil {
		l.Attrs().Name = name
	}
}

func (w *work) setLink(link *netv1.Link, l netlink.Link) {
	name := l.Attrs().Name
	if mtu := int(link.GetMtu()); mtu > 0 && l.Attrs().MTU != mtu {
		w.refused(w.handle.LinkSetMTU(l, mtu), "an MTU of %d on %s", mtu, name)
	}
	if mac, err := net.ParseMAC(link.GetMac()); link.GetMac() != "" && l.Attrs().HardwareAddr.String() != mac.String() {
		if err == nil {
			err = w.handle.LinkSetHardwareAddr(l, mac)
		}
		w.refused(err, "the address %s on %s", link.GetMac(), name)
	}
	w.setIPv6(link, name)
	if noarp := l.Attrs().RawFlags&unix.IFF_NOARP != 0; noarp != link.GetNoarp() {
		set := w.handle.LinkSetARPOn
		if link.GetNoarp() {
			set = w.handle.LinkSetARPOff
		}
		w.refused(set(l), "resolution of addresses on %s being %s", name, onOff(!link.GetNoarp()))
	}
	w.refused(setTxChecksum(name, !link.GetTxChecksumOff()), "checksums of sent packets by %s being %s", name, onOff(!link.GetTxChecksumOff()))
	w.refused(spread(name, w.processors), "to spread %s over the processors", name)
	switch up := l.Attrs().Flags&net.FlagUp != 0; {
	case link.GetUp() && !up:
		w.refused(w.handle.LinkSetUp(l), "to switch %s on", name)
	case !link.GetUp() && up:
		w.refused(w.handle.LinkSetDown(l), "to switch %s off", name)
	}
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// setIPv6 makes the device's IPv6 that of the link. Every address comes from the
// host, so the kernel makes none itself, from the card's address or from routers'
// advertisements, unless the host's side lives by these; and where the host has no
// IPv6, as on Docker's default bridge, there is none.
func (w *work) setIPv6(link *netv1.Link, name string) {
	has, advertised := false, false
	for _, a := range link.GetAddresses() {
		prefix, err := netip.ParsePrefix(a.GetPrefix())
		has = has || err == nil && prefix.Addr().Is6()
	}
	for _, r := range w.network.GetRoutes() {
		advertised = advertised || r.GetLink() == link.GetId() && r.GetProtocol() == routerAdvertised
	}
	for _, setting := range []struct{ name, value string }{
		{"addr_gen_mode", "1"}, // IN6_ADDR_GEN_MODE_NONE
		{"accept_ra", digit(advertised)},
		{"autoconf", "0"},
		{"disable_ipv6", digit(!has)},
	} {
		w.refused(setIfDifferent(filepath.Join("/proc/sys/net/ipv6/conf", name, setting.name), setting.value),
			"%s=%s of IPv6 on %s", setting.name, setting.value, name)
	}
}

func digit(yes bool) string {
	if yes {
		return "1"
	}
	return "0"
}

// setIfDifferent writes a setting: writing again what is there is not without effect on all of them.
func setIfDifferent(path, value string) error {
	now, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // no IPv6 on a device with an MTU below 1280
	}
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(now)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0)
}

// Spread makes the cards use as many of their queues as there are processors.
func (n *Network) Spread(processors int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.processors = processors
	return inside(n.home, func() error {
		links, err := listLinks()
		if err != nil {
			return err
		}
		var errs []error
		for _, mac := range n.made.devices {
			if l := findCard(links, mac); l != nil {
				if err := spread(l.Attrs().Name, processors); err != nil {
					errs = append(errs, fmt.Errorf("spreading %s over %d processors: %w", l.Attrs().Name, processors, err))
				}
			}
		}
		return errors.Join(errs...)
	})
}
