// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
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
		for _, kind := range []struct {
			name     string
			protocol uint8
			state    uint8
		}{{"tcp", unix.IPPROTO_TCP, stateListen}, {"udp", unix.IPPROTO_UDP, stateUnconnected}} {
			for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
				some, err := sockets(family, kind.protocol, kind.state)
				if err != nil {
					return fmt.Errorf("list the %s sockets: %w", kind.name, err)
				}
				for _, at := range some {
					if at.Addr().IsLoopback() && at.Port() != 0 {
						found = append(found, &netv1.Listener{Protocol: kind.name, Address: at.Addr().String(), Port: uint32(at.Port())})
					}
				}
			}
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

// sockets are the local ends of the sockets of a state that are connected to
// nobody, in the namespace of the calling thread. The kernel is asked for that
// state alone: it has one table of connections for all namespaces, which may be
// large, and need not walk it.
func sockets(family, protocol, state uint8) ([]netip.AddrPort, error) {
	request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	body := make([]byte, 56) // struct inet_diag_req_v2
	body[0], body[1] = family, protocol
	binary.NativeEndian.PutUint32(body[4:], 1<<state)
	request.AddRawData(body)
	answers, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil {
		return nil, err
	}
	var found []netip.AddrPort
	for _, m := range answers { // struct inet_diag_msg
		if len(m) < 40 || m[0] != family || m[1] != state || binary.BigEndian.Uint16(m[6:]) != 0 {
			continue
		}
		addr := netip.AddrFrom4([4]byte(m[8:12]))
		if family == unix.AF_INET6 {
			addr = netip.AddrFrom16([16]byte(m[8:24]))
		}
		found = append(found, netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(m[4:])))
	}
	return found, nil
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
