// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// verdict is what the model says of a frame: passed, or dropped for a reason.
type verdict struct {
	drop bool
	why  Reason
}

func (v verdict) String() string {
	if v.drop {
		return "dropped: " + v.why.String()
	}
	return "passed"
}

var passed = verdict{}

func dropped(r Reason) verdict { return verdict{true, r} }

// judge is the rules in plain words: what the program must say of a frame whose
// tags are in the frame itself and that asks for no checksum.
func judge(r Rules, f []byte) verdict {
	if len(f) < 34 {
		return dropped(Short)
	}
	mine := func(mac []byte) bool {
		return slices.ContainsFunc(r.MACs, func(m net.HardwareAddr) bool { return string(m) == string(mac) })
	}
	own := func(addr []byte) bool {
		a, _ := netip.AddrFromSlice(addr)
		if a.Is6() && slices.ContainsFunc(r.MACs, func(m net.HardwareAddr) bool { return linkLocal(m) == a }) {
			return true
		}
		return slices.ContainsFunc(r.Addresses, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if !mine(f[6:12]) {
		return dropped(MAC)
	}
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0806:
		return judgeARP(f[14:], mine, own)
	case 0x0800:
		return judgeIPv4(f[14:], own)
	case 0x86dd:
		return judgeIPv6(f[14:], mine, own)
	case 0x8100, 0x88a8, 0x9100:
		return dropped(VLAN)
	}
	return dropped(EtherType)
}

func judgeARP(p []byte, mine, own func([]byte) bool) verdict {
	if len(p) < 28 {
		return dropped(Short)
	}
	op := binary.BigEndian.Uint16(p[6:])
	if string(p[:6]) != "\x00\x01\x08\x00\x06\x04" || !mine(p[8:14]) {
		return dropped(ARP)
	}
	sender := p[14:18]
	switch {
	case op == 1 && string(sender) == "\x00\x00\x00\x00":
		sender = p[24:28]
	case op != 1 && op != 2:
		return dropped(ARP)
	}
	if string(sender) == "\x00\x00\x00\x00" || !own(sender) {
		return dropped(ARP)
	}
	return passed
}

func judgeIPv4(p []byte, own func([]byte) bool) verdict {
	header := int(p[0]&0xf) * 4
	if p[0]>>4 != 4 || header < 20 {
		return dropped(Short)
	}
	unspecified := string(p[12:16]) == "\x00\x00\x00\x00"
	if !unspecified && !own(p[12:16]) {
		return dropped(IPv4)
	}
	later := binary.BigEndian.Uint16(p[6:])&0x1fff != 0
	var transport []byte
	if header <= len(p) {
		transport = p[header:]
	}
	allowed := !unspecified
	switch {
	case later:
	case p[9] == protoUDP:
		if len(transport) < 8 {
			return dropped(Short)
		}
		from, to := binary.BigEndian.Uint16(transport), binary.BigEndian.Uint16(transport[2:])
		if from == 67 || to == 68 {
			return dropped(DHCP)
		}
		allowed = allowed || from == 68 && to == 67
	case p[9] == protoICMP:
		if len(transport) < 4 {
			return dropped(Short)
		}
		if transport[0] == 5 || transport[0] == 9 {
			return dropped(Router)
		}
	case p[9] == protoIGMP:
		allowed = true
	}
	if !allowed {
		return dropped(IPv4)
	}
	return passed
}

func judgeIPv6(p []byte, mine, own func([]byte) bool) verdict {
	if len(p) < 40 || p[0]>>4 != 6 {
		return dropped(Short)
	}
	unspecified := string(p[8:24]) == string(make([]byte, 16))
	if !unspecified && !own(p[8:24]) {
		return dropped(IPv6)
	}
	next, at, seen := p[6], 40, 0
	for {
		switch next {
		case 0, 43, 60, 135, 139, 140, 51, 44:
		default:
			return judgeTransport(p, next, p[min(at, len(p)):], seen, unspecified, mine, own)
		}
		if at+8 > len(p) {
			return dropped(Short)
		}
		size := (int(p[at+1]) + 1) * 8
		switch next {
		case 51:
			size = (int(p[at+1]) + 2) * 4
		case 44:
			if binary.BigEndian.Uint16(p[at+2:])&0xfff8 != 0 {
				return judgeTransport(p, 255, nil, seen, unspecified, mine, own)
			}
			size = 8
		}
		next, at, seen = p[at], at+size, seen+1
		// Whatever comes after so many, nobody needs it.
		if seen == maxExtensions {
			return dropped(Headers)
		}
	}
}

func judgeTransport(p []byte, next byte, rest []byte, seen int, unspecified bool, mine, own func([]byte) bool) verdict {
	switch next {
	case protoUDP:
		if len(rest) < 8 {
			return dropped(Short)
		}
		if binary.BigEndian.Uint16(rest) == 547 || binary.BigEndian.Uint16(rest[2:]) == 546 {
			return dropped(DHCP)
		}
	case protoICMPv6:
		if len(rest) < 4 {
			return dropped(Short)
		}
		switch rest[0] {
		case 134, 137, 138, 148, 149, 151:
			return dropped(Router)
		case 131, 132, 143:
			return passed
		case 133, 135, 136:
			if seen > 0 {
				return dropped(NDHidden)
			}
			return judgeND(p, rest, unspecified, mine, own)
		}
	}
	if unspecified {
		return dropped(IPv6)
	}
	return passed
}

func judgeND(p, m []byte, unspecified bool, mine, own func([]byte) bool) verdict {
	if int(binary.BigEndian.Uint16(p[4:]))+40 != len(p) {
		return dropped(ND)
	}
	options := 8
	if m[0] != 133 {
		options = 24
		if len(m) < 24 {
			return dropped(Short)
		}
		if m[0] == 136 && unspecified {
			return dropped(ND)
		}
		if (m[0] == 136 || unspecified) && !own(m[8:24]) {
			return dropped(ND)
		}
	}
	if options > len(m) {
		return dropped(ND)
	}
	m = m[options:]
	for n := 0; len(m) > 0; n++ {
		if n == maxNDOptions || len(m) < 8 || m[1] == 0 {
			return dropped(ND)
		}
		size := int(m[1]) * 8
		if (m[0] == 1 || m[0] == 2) && (size != 8 || !mine(m[2:8])) {
			return dropped(ND)
		}
		if size > len(m) {
			return dropped(ND)
		}
		m = m[size:]
	}
	return passed
}
