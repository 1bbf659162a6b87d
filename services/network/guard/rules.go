// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// Rules say what a VM may send through a tap.
type Rules struct {
	// MACs are the Ethernet addresses it may send from: the link's own first.
	MACs []net.HardwareAddr
	// Addresses are those it may send from: the link's own as single addresses
	// (10.0.0.2/32), and the prefixes of an allow-list. The link-local IPv6
	// addresses that follow from the MACs are always among them.
	Addresses []netip.Prefix
}

const (
	maxMACs      = 64
	maxAddresses = 1024 // of each family
)

// Keys of the maps, in the kernel's layout: a prefix of a trie is its length and
// then its address.
type (
	macKey [8]byte // the last two are zero
	key4   [8]byte
	key6   [20]byte
)

// keys are the rules as the maps have them.
type keys struct {
	macs map[macKey]bool
	v4   map[key4]bool
	v6   map[key6]bool
}

func (r Rules) keys() (keys, error) {
	k := keys{macs: map[macKey]bool{}, v4: map[key4]bool{}, v6: map[key6]bool{}}
	if len(r.MACs) == 0 {
		return k, fmt.Errorf("a link without an Ethernet address cannot be guarded")
	}
	for _, mac := range r.MACs {
		if len(mac) != 6 || mac[0]&1 != 0 {
			return k, fmt.Errorf("%q is no Ethernet address of a station", mac)
		}
		k.macs[macKey(append(mac[:6:6], 0, 0))] = true
		k.v6[prefix6(netip.PrefixFrom(linkLocal(mac), 128))] = true
	}
	for _, p := range r.Addresses {
		if !p.IsValid() {
			return k, fmt.Errorf("an address of the link is not valid")
		}
		addr, bits := p.Addr().WithZone(""), p.Bits()
		if addr.Is4In6() {
			return k, fmt.Errorf("%s: write it as an IPv4 address", p)
		}
		p = netip.PrefixFrom(addr, bits).Masked()
		if addr.Is4() {
			k.v4[prefix4(p)] = true
		} else {
			k.v6[prefix6(p)] = true
		}
	}
	if len(k.macs) > maxMACs || len(k.v4) > maxAddresses || len(k.v6) > maxAddresses {
		return k, fmt.Errorf("%d Ethernet, %d IPv4 and %d IPv6 addresses for one link: at most %d, %d and %d can be allowed; name prefixes instead",
			len(k.macs), len(k.v4), len(k.v6), maxMACs, maxAddresses, maxAddresses)
	}
	return k, nil
}

func prefix4(p netip.Prefix) (k key4) {
	binary.NativeEndian.PutUint32(k[:], uint32(p.Bits()))
	a := p.Addr().As4()
	copy(k[4:], a[:])
	return k
}

func prefix6(p netip.Prefix) (k key6) {
	binary.NativeEndian.PutUint32(k[:], uint32(p.Bits()))
	a := p.Addr().As16()
	copy(k[4:], a[:])
	return k
}

// linkLocal is the address that every interface with this MAC gives itself
// (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}
