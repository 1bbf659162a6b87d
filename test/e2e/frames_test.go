// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Frames as a hostile guest would put them together.

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func macOf(text string) []byte {
	mac, err := net.ParseMAC(text)
	if err != nil {
		panic(err) // a constant of a test
	}
	return mac
}

func addressOf(text string) []byte { return netip.MustParseAddr(text).AsSlice() }

// ether is a frame to everybody; its length is one that no device adds to.
func ether(from string, kind uint16, parts ...[]byte) []byte {
	f := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, macOf(from), u16(kind), slices.Concat(parts...))
	return append(f, make([]byte, max(0, 60-len(f)))...)
}

// udp is a datagram over IPv4 or IPv6, as the address is.
func udp(mac, from string, source, target uint16, text string) []byte {
	kind, packet := datagram(from, source, target, text)
	return ether(mac, kind, packet)
}

// tagged is one with a VLAN tag.
func tagged(mac, from, text string) []byte {
	kind, packet := datagram(from, 1000, 7, text)
	return ether(mac, 0x8100, u16(5), u16(kind), packet)
}

func datagram(from string, source, target uint16, text string) (kind uint16, packet []byte) {
	text = fmt.Sprintf("%-24s", text) // what fills up a short frame a bridge with a packet filter takes off
	data := slices.Concat(u16(source), u16(target), u16(uint16(8+len(text))), u16(0), []byte(text))
	if netip.MustParseAddr(from).Is6() {
		return 0x86dd, ipv6Packet(from, 17, data)
	}
	h := slices.Concat([]byte{0x45, 0}, u16(uint16(20+len(data))), u16(1), u16(0), []byte{64, 17}, u16(0), addressOf(from), addressOf("255.255.255.255"))
	var sum uint32 // bridges look at it
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
	return 0x0800, append(h, data...)
}

func ipv6Packet(from string, next byte, data []byte) []byte {
	return slices.Concat([]byte{0x60, 0, 0, 0}, u16(uint16(len(data))), []byte{next, 255}, addressOf(from), addressOf("ff02::1"), data)
}

// arpAnswer says that an address is at a MAC address.
func arpAnswer(mac, hardware, address string) []byte {
	return ether(mac, 0x0806, []byte{0, 1, 8, 0, 6, 4, 0, 2}, macOf(hardware), addressOf(address), make([]byte, 6), addressOf(wireFar4))
}

// advertisement says so of an IPv6 address.
func advertisement(mac, from, hardware, address string) []byte {
	message := slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, addressOf(address), []byte{2, 1}, macOf(hardware))
	return ether(mac, 0x86dd, ipv6Packet(from, 58, message))
}

// routerAdvertisement says that the sender is the way to everywhere.
func routerAdvertisement(mac, from string) []byte {
	message := slices.Concat([]byte{134, 0, 0, 0, 64, 0}, u16(1800), make([]byte, 8))
	return ether(mac, 0x86dd, ipv6Packet(from, 58, message))
}
