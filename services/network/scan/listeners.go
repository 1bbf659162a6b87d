// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// States of a socket as sock_diag(7) tells them.
const (
	stateListen      = 10
	stateUnconnected = 7
)

// dnsPort is what resolvers are asked at.
const dnsPort = 53

// probeTime bounds a connection to a loopback address of the namespace.
const probeTime = 200 * time.Millisecond

// Listeners reads what listens on loopback addresses of the namespace.
//
// Docker's resolver listens on ports of its own choice at 127.0.0.11, and rules
// in the namespace redirect port 53 to them. Which rules those are depends on
// the host (iptables of either kind, nftables), so they are not read: where
// something listens on a loopback address for both protocols and nothing at
// port 53, a connection to that port tells whether it leads anywhere.
func Listeners(ns *netspace.Namespace) ([]*netv1.Listener, error) {
	var found []*netv1.Listener
	err := ns.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_INET_DIAG)
		if err != nil {
			return err
		}
		defer nl.Close()
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			tcp, err := nl.SocketDiagTCP(family)
			if err != nil {
				return fmt.Errorf("list TCP sockets: %w", err)
			}
			udp, err := nl.SocketDiagUDP(family)
			if err != nil {
				return fmt.Errorf("list UDP sockets: %w", err)
			}
			found = append(found, listening("tcp", tcp, stateListen)...)
			found = append(found, listening("udp", udp, stateUnconnected)...)
		}
		found = append(found, redirected(found)...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b *netv1.Listener) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	return slices.CompactFunc(found, same), nil
}

func listening(protocol string, sockets []*netlink.Socket, state uint8) []*netv1.Listener {
	var found []*netv1.Listener
	for _, s := range sockets {
		if s.State == state && s.ID.Source.IsLoopback() && s.ID.SourcePort != 0 && s.ID.DestinationPort == 0 {
			found = append(found, &netv1.Listener{Protocol: protocol, Address: s.ID.Source.String(), Port: uint32(s.ID.SourcePort)})
		}
	}
	return found
}

// redirected finds resolvers behind a redirection. The caller is in the
// namespace.
func redirected(found []*netv1.Listener) []*netv1.Listener {
	type has struct{ tcp, udp, dns bool }
	at := map[string]has{}
	for _, l := range found {
		h := at[l.Address]
		h.tcp = h.tcp || l.Protocol == "tcp"
		h.udp = h.udp || l.Protocol == "udp"
		h.dns = h.dns || l.Port == dnsPort
		at[l.Address] = h
	}
	var more []*netv1.Listener
	for address, h := range at {
		if !h.tcp || !h.udp || h.dns || !answers(address) {
			continue
		}
		for _, protocol := range []string{"tcp", "udp"} {
			more = append(more, &netv1.Listener{Protocol: protocol, Address: address, Port: dnsPort})
		}
	}
	return more
}

// answers tries a TCP connection to the resolver's port. It uses the calling
// thread's namespace, so no other thread may make the socket.
func answers(address string) bool {
	ip := net.ParseIP(address)
	fd, err := dial(ip, dnsPort, unix.SOCK_STREAM, probeTime)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func same(a, b *netv1.Listener) bool {
	return a.Protocol == b.Protocol && a.Address == b.Address && a.Port == b.Port
}
