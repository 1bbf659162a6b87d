// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

var (
	ownMAC   = net.HardwareAddr{0x02, 0x42, 0x0a, 0, 0, 2}
	otherMAC = net.HardwareAddr{0x02, 0x42, 0x0a, 0, 0, 9}
	own4     = netip.MustParseAddr("10.0.0.2")
	other4   = netip.MustParseAddr("10.0.0.9")
	own6     = netip.MustParseAddr("fd00::2")
	other6   = netip.MustParseAddr("fd00::9")
	none4    = netip.IPv4Unspecified()
	none6    = netip.IPv6Unspecified()
	all4     = netip.MustParseAddr("255.255.255.255")
	allNodes = netip.MustParseAddr("ff02::1")

	ownRules = Rules{
		MACs:      []net.HardwareAddr{ownMAC},
		Addresses: []netip.Prefix{netip.PrefixFrom(own4, 32), netip.PrefixFrom(own6, 128)},
	}
)

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func ether(src net.HardwareAddr, kind uint16, payload ...[]byte) []byte {
	return join(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, src, u16(kind), join(payload...))
}

func arp(op uint16, sha net.HardwareAddr, spa, tpa netip.Addr) []byte {
	return ether(ownMAC, 0x0806, []byte{0, 1, 8, 0, 6, 4}, u16(op), sha, spa.AsSlice(), make([]byte, 6), tpa.AsSlice())
}

// ipv4 has frag as its flags and offset.
func ipv4(src, dst netip.Addr, proto byte, frag uint16, payload ...[]byte) []byte {
	p := join(payload...)
	h := join([]byte{0x45, 0}, u16(uint16(20+len(p))), u16(1), u16(frag), []byte{64, proto}, u16(0), src.AsSlice(), dst.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
	return ether(ownMAC, 0x0800, h, p)
}

func ipv6(src, dst netip.Addr, next byte, payload ...[]byte) []byte {
	p := join(payload...)
	return ether(ownMAC, 0x86dd, []byte{0x60, 0, 0, 0}, u16(uint16(len(p))), []byte{next, 255}, src.AsSlice(), dst.AsSlice(), p)
}

func udp(from, to uint16, data string) []byte {
	return join(u16(from), u16(to), u16(uint16(8+len(data))), u16(0), []byte(data))
}

func icmp(kind byte, rest ...byte) []byte { return append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, rest...) }

// nd is a message of neighbour discovery with a target, checksummed for src and dst.
func nd(kind byte, target netip.Addr, options ...[]byte) []byte {
	return join(icmp(kind), target.AsSlice(), join(options...))
}

func lladdr(option byte, mac net.HardwareAddr) []byte { return append([]byte{option, 1}, mac...) }

// extension is an IPv6 extension header of 8 bytes; fragmentHeader one that says where the fragment belongs.
func extension(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

func fragmentHeader(next byte, offset uint16, more bool) []byte {
	v := offset &^ 7
	if more {
		v |= 1
	}
	return join([]byte{next, 0}, u16(v), []byte{0, 0, 0, 7})
}
