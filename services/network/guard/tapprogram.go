// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

package guard

import "github.com/cilium/ebpf/asm"

// The stack of the program that judges what a VM sends, as offsets from the frame
// pointer. The packet's first 54 bytes stand so that the network header, and the
// addresses in it, are aligned: the kernel wants that of accesses to the stack.
const (
	eth       = -78      // destination 6, source 6, type 2
	network   = eth + 14 // -64
	option    = -24      // 8: an extension header, or a UDP header, or an ND option
	message   = -104     // 24: an ICMPv6 message up to and with the target of ND
	trieKey   = -128     // 20: length, address
	macKeyAt  = -136     // 8
	counterAt = -140     // 4
	extended  = -144     // 4: how many extension headers there were
	noSource  = -152     // 4: has it the unspecified address as source?
	shape     = -156     // 4: where a checksum may be written
	scratch   = -160     // 4

	trieAddress = trieKey + 4
)

// Where, from the start of the transport header, the kernel may be asked to write
// a checksum. What was checked must not change after the check.
const (
	checksumNowhere = iota // ARP
	checksumAnywhere
	checksumUDP    // in its field, or behind the header
	checksumICMP   // likewise
	checksumICMPv6 // in its field
)

// Offsets in __sk_buff (include/uapi/linux/bpf.h).
const (
	skbLen         = 0
	skbVLANPresent = 20
)

// Verdicts of a classifier (include/uapi/linux/pkt_cls.h).
const (
	actUnspec = -1 // no opinion: the next filter is asked
	actOK     = 0
	actShot   = 2
)

const (
	protoICMP     = 1
	protoIGMP     = 2
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoDstOpts  = 60
	protoMobility = 135
	protoHIP      = 139
	protoShim6    = 140
)

const (
	maxExtensions = 8
	maxNDOptions  = 6
)

// tapMaps are the descriptors of the maps that the program reads and counts in.
type tapMaps struct{ macs, v4, v6, counts int }

// tapProgram judges one packet of the VM: dropped and counted, or left to the next
// filter. R6 is the packet, R7 the offset of the header looked at, R8 its kind, R9
// the reason of a drop.
func tapProgram(maps tapMaps, l *skbLayout) asm.Instructions {
	a := &assembly{}
	a.add(asm.Mov.Reg(asm.R6, asm.R1))
	a.add(asm.LoadMem(asm.R0, asm.R6, skbVLANPresent, asm.Word), asm.JNE.Imm(asm.R0, 0, drop(VLAN)))
	a.load(0, eth, 34, drop(Short))
	a.add(asm.Mov.Imm(asm.R0, 0))
	for _, at := range []int16{extended, noSource} {
		a.put(at, asm.R0, asm.Word)
	}
	a.mac(maps, eth+6, MAC)
	a.get(asm.R0, eth+12, asm.Half)
	a.add(
		asm.JEq.Imm(asm.R0, be16(0x0800), "ipv4"),
		asm.JEq.Imm(asm.R0, be16(0x86dd), "ipv6"),
		asm.JEq.Imm(asm.R0, be16(0x0806), "arp"),
		asm.JEq.Imm(asm.R0, be16(0x8100), drop(VLAN)),
		asm.JEq.Imm(asm.R0, be16(0x88a8), drop(VLAN)),
		asm.JEq.Imm(asm.R0, be16(0x9100), drop(VLAN)),
		asm.Ja.Label(drop(EtherType)),
	)
	a.arp(maps)
	a.ipv4(maps)
	a.ipv6(maps)
	a.icmpv6(maps)
	a.checksum(l)

	a.label("pass")
	a.add(asm.Mov.Imm(asm.R0, actUnspec), asm.Return())
	for r := range reasons {
		a.label(drop(r))
		a.add(asm.Mov.Imm(asm.R9, int32(r)), asm.Ja.Label("drop"))
	}
	a.label("drop")
	a.put(counterAt, asm.R9, asm.Word)
	a.lookup(maps.counts, counterAt)
	a.add(
		asm.JEq.Imm(asm.R0, 0, "shot"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord), asm.Add.Imm(asm.R1, 1), asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	)
	a.label("shot")
	a.add(asm.Mov.Imm(asm.R0, actShot), asm.Return())
	return a.ins
}

func drop(r Reason) string { return "drop_" + r.String() }

// mac drops unless the six bytes at fp+at are a MAC of the VM's.
func (a *assembly) mac(maps tapMaps, at int16, why Reason) {
	for i := int16(0); i < 6; i += 2 {
		a.get(asm.R0, at+i, asm.Half)
		a.put(macKeyAt+i, asm.R0, asm.Half)
	}
	a.add(asm.Mov.Imm(asm.R0, 0))
	a.put(macKeyAt+6, asm.R0, asm.Half)
	a.lookup(maps.macs, macKeyAt)
	a.add(asm.JEq.Imm(asm.R0, 0, drop(why)))
}

// address4 and address6 drop unless the address at fp+at is the VM's.
func (a *assembly) address4(maps tapMaps, at int16, why Reason) {
	a.add(asm.Mov.Imm(asm.R0, 32))
	a.put(trieKey, asm.R0, asm.Word)
	for i := int16(0); i < 4; i += 2 {
		a.get(asm.R0, at+i, asm.Half)
		a.put(trieAddress+i, asm.R0, asm.Half)
	}
	a.lookup(maps.v4, trieKey)
	a.add(asm.JEq.Imm(asm.R0, 0, drop(why)))
}

func (a *assembly) address6(maps tapMaps, at int16, why Reason) {
	a.add(asm.Mov.Imm(asm.R0, 128))
	a.put(trieKey, asm.R0, asm.Word)
	for i := int16(0); i < 16; i += 4 {
		a.get(asm.R0, at+i, asm.Word)
		a.put(trieAddress+i, asm.R0, asm.Word)
	}
	a.lookup(maps.v6, trieKey)
	a.add(asm.JEq.Imm(asm.R0, 0, drop(why)))
}

// arp: the sender is the VM; one without an address yet asks for its own (RFC 5227).
func (a *assembly) arp(maps tapMaps) {
	const operation, senderMAC, sender, target = network + 6, network + 8, network + 14, network + 24
	a.label("arp")
	a.load(34, network+20, 8, drop(Short))
	a.get(asm.R0, network, asm.Word)
	a.add(asm.JNE.Imm(asm.R0, be32(0x00010800), drop(ARP)))
	a.get(asm.R0, network+4, asm.Half)
	a.add(asm.JNE.Imm(asm.R0, be16(0x0604), drop(ARP)))
	a.mac(maps, senderMAC, ARP)
	a.add(asm.Mov.Imm(asm.R7, 14), asm.Mov.Imm(asm.R0, checksumNowhere))
	a.put(shape, asm.R0, asm.Word)

	a.get(asm.R0, sender, asm.Half)
	a.get(asm.R1, sender+2, asm.Half)
	a.add(asm.Or.Reg(asm.R1, asm.R0))
	a.get(asm.R0, operation, asm.Half)
	a.add(
		asm.JEq.Imm(asm.R1, 0, "arp_probe"),
		asm.JEq.Imm(asm.R0, be16(1), "arp_sender"),
		asm.JNE.Imm(asm.R0, be16(2), drop(ARP)),
	)
	a.label("arp_sender")
	a.address4(maps, sender, ARP)
	a.add(asm.Ja.Label("checksum"))
	a.label("arp_probe")
	a.add(asm.JNE.Imm(asm.R0, be16(1), drop(ARP)))
	a.address4(maps, target, ARP)
	a.add(asm.Ja.Label("checksum"))
}

// ipv4: without an address yet, a machine asks DHCP and joins multicast groups.
func (a *assembly) ipv4(maps tapMaps) {
	const fragmentation, protocol, source = network + 6, network + 9, network + 12
	a.label("ipv4")
	a.get(asm.R7, network, asm.Byte)
	a.add(
		asm.Mov.Reg(asm.R0, asm.R7), asm.RSh.Imm(asm.R0, 4), asm.JNE.Imm(asm.R0, 4, drop(Short)),
		asm.And.Imm(asm.R7, 0xf), asm.JLT.Imm(asm.R7, 5, drop(Short)),
		asm.LSh.Imm(asm.R7, 2), asm.Add.Imm(asm.R7, 14),
	)
	a.get(asm.R0, source, asm.Word)
	a.add(asm.JEq.Imm(asm.R0, 0, "ipv4_unspecified"))
	a.address4(maps, source, IPv4)
	a.add(asm.Ja.Label("ipv4_transport"))
	a.label("ipv4_unspecified")
	a.add(asm.Mov.Imm(asm.R0, 1))
	a.put(noSource, asm.R0, asm.Word)

	a.label("ipv4_transport")
	a.get(asm.R8, protocol, asm.Byte)
	a.add(asm.Mov.Imm(asm.R0, checksumAnywhere))
	a.put(shape, asm.R0, asm.Word)
	a.get(asm.R0, fragmentation, asm.Half)
	a.add(
		asm.And.Imm(asm.R0, be16(0x1fff)),
		asm.JNE.Imm(asm.R0, 0, "ipv4_other"), // no first fragment: its transport header was judged
		asm.JEq.Imm(asm.R8, protoUDP, "ipv4_udp"),
		asm.JEq.Imm(asm.R8, protoICMP, "ipv4_icmp"),
		asm.JEq.Imm(asm.R8, protoIGMP, "checksum"),
	)
	a.label("ipv4_other")
	a.get(asm.R0, noSource, asm.Word)
	a.add(asm.JNE.Imm(asm.R0, 0, drop(IPv4)), asm.Ja.Label("checksum"))

	a.label("ipv4_udp")
	a.udp(67, 68)
	a.get(asm.R2, noSource, asm.Word)
	a.add(
		asm.JEq.Imm(asm.R2, 0, "checksum"),
		asm.JNE.Imm(asm.R0, be16(68), drop(IPv4)),
		asm.JNE.Imm(asm.R1, be16(67), drop(IPv4)),
		asm.Ja.Label("checksum"),
	)

	a.label("ipv4_icmp")
	a.add(asm.Mov.Imm(asm.R0, checksumICMP))
	a.put(shape, asm.R0, asm.Word)
	a.load(atR7, option, 4, drop(Short))
	a.get(asm.R0, option, asm.Byte)
	a.add(
		asm.JEq.Imm(asm.R0, 5, drop(Router)), // redirect
		asm.JEq.Imm(asm.R0, 9, drop(Router)), // router advertisement (RFC 1256)
	)
	a.get(asm.R0, noSource, asm.Word)
	a.add(asm.JNE.Imm(asm.R0, 0, drop(IPv4)), asm.Ja.Label("checksum"))
}

// ipv6 follows the extension headers. The first fragment of a packet must hold all
// of them and the transport header's beginning (RFC 7112), so the others say nothing.
func (a *assembly) ipv6(maps tapMaps) {
	const next, source = network + 6, network + 8
	a.label("ipv6")
	a.load(34, network+20, 20, drop(Short))
	a.get(asm.R0, network, asm.Byte)
	a.add(asm.RSh.Imm(asm.R0, 4), asm.JNE.Imm(asm.R0, 6, drop(Short)))
	a.get(asm.R0, source, asm.DWord)
	a.get(asm.R1, source+8, asm.DWord)
	a.add(asm.Or.Reg(asm.R0, asm.R1), asm.JEq.Imm(asm.R0, 0, "ipv6_unspecified"))
	a.address6(maps, source, IPv6)
	a.add(asm.Ja.Label("ipv6_chain"))
	a.label("ipv6_unspecified")
	a.add(asm.Mov.Imm(asm.R0, 1))
	a.put(noSource, asm.R0, asm.Word)

	a.label("ipv6_chain")
	a.add(asm.Mov.Imm(asm.R0, checksumAnywhere))
	a.put(shape, asm.R0, asm.Word)
	a.add(asm.Mov.Imm(asm.R7, 54))
	a.get(asm.R8, next, asm.Byte)
	for range maxExtensions {
		plain, ah, frag, follow := a.fresh("plain"), a.fresh("ah"), a.fresh("fragment"), a.fresh("follow")
		a.add(
			asm.JEq.Imm(asm.R8, 0, plain), // hop by hop
			asm.JEq.Imm(asm.R8, protoRouting, plain),
			asm.JEq.Imm(asm.R8, protoDstOpts, plain),
			asm.JEq.Imm(asm.R8, protoMobility, plain),
			asm.JEq.Imm(asm.R8, protoHIP, plain),
			asm.JEq.Imm(asm.R8, protoShim6, plain),
			asm.JEq.Imm(asm.R8, protoAH, ah),
			asm.JEq.Imm(asm.R8, protoFragment, frag),
			asm.Ja.Label("ipv6_transport"),
		)
		a.label(frag)
		a.load(atR7, option, 8, drop(Short))
		a.get(asm.R8, option, asm.Byte)
		a.get(asm.R0, option+2, asm.Half)
		a.add(asm.Add.Imm(asm.R7, 8), asm.And.Imm(asm.R0, be16(0xfff8)), asm.JNE.Imm(asm.R0, 0, "ipv6_other"))
		a.add(asm.Ja.Label(follow))

		a.label(ah)
		a.load(atR7, option, 8, drop(Short))
		a.get(asm.R8, option, asm.Byte)
		a.get(asm.R0, option+1, asm.Byte)
		a.add(asm.Add.Imm(asm.R0, 2), asm.LSh.Imm(asm.R0, 2), asm.Add.Reg(asm.R7, asm.R0), asm.Ja.Label(follow))

		a.label(plain)
		a.load(atR7, option, 8, drop(Short))
		a.get(asm.R8, option, asm.Byte)
		a.get(asm.R0, option+1, asm.Byte)
		a.add(asm.Add.Imm(asm.R0, 1), asm.LSh.Imm(asm.R0, 3), asm.Add.Reg(asm.R7, asm.R0))

		a.label(follow)
		a.add(asm.Mov.Imm(asm.R0, 1))
		a.put(extended, asm.R0, asm.Word)
	}
	a.add(asm.Ja.Label(drop(Headers)))

	a.label("ipv6_transport")
	a.add(
		asm.JEq.Imm(asm.R8, protoICMPv6, "icmpv6"),
		asm.JEq.Imm(asm.R8, protoUDP, "ipv6_udp"),
	)
	a.label("ipv6_other")
	a.get(asm.R0, noSource, asm.Word)
	a.add(asm.JNE.Imm(asm.R0, 0, drop(IPv6)), asm.Ja.Label("checksum"))

	a.label("ipv6_udp")
	a.udp(547, 546)
	a.add(asm.Ja.Label("ipv6_other"))
}

// udp notes where the checksum stands and drops what a server of DHCP says, told by its port and its client's. R0 is
// the source port afterwards.
func (a *assembly) udp(server, client uint16) {
	a.add(asm.Mov.Imm(asm.R0, checksumUDP))
	a.put(shape, asm.R0, asm.Word)
	a.load(atR7, option, 8, drop(Short))
	a.get(asm.R0, option, asm.Half)
	a.get(asm.R1, option+2, asm.Half)
	a.add(
		asm.JEq.Imm(asm.R0, be16(server), drop(DHCP)),
		asm.JEq.Imm(asm.R1, be16(client), drop(DHCP)),
	)
}

// icmpv6 holds neighbour discovery to the VM's own addresses.
func (a *assembly) icmpv6(maps tapMaps) {
	const (
		routerSolicitation, neighbourSolicitation, neighbourAdvertisement = 133, 135, 136
		target                                                            = message + 8
	)
	a.label("icmpv6")
	a.add(asm.Mov.Imm(asm.R0, checksumICMPv6))
	a.put(shape, asm.R0, asm.Word)
	a.load(atR7, option, 4, drop(Short))
	a.get(asm.R8, option, asm.Byte)
	// Advertisements of routers, redirects, renumbering, certificates of routers (SEND), multicast routers.
	for _, kind := range []int32{134, 137, 138, 148, 149, 151} {
		a.add(asm.JEq.Imm(asm.R8, kind, drop(Router)))
	}
	a.add(
		asm.JEq.Imm(asm.R8, routerSolicitation, "nd"),
		asm.JEq.Imm(asm.R8, neighbourSolicitation, "nd"),
		asm.JEq.Imm(asm.R8, neighbourAdvertisement, "nd"),
		// Reports of multicast listeners come without an address, too (RFC 3590).
		asm.JEq.Imm(asm.R8, 131, "checksum"),
		asm.JEq.Imm(asm.R8, 132, "checksum"),
		asm.JEq.Imm(asm.R8, 143, "checksum"),
		asm.Ja.Label("ipv6_other"),
	)

	a.label("nd")
	a.get(asm.R0, extended, asm.Word)
	a.add(asm.JNE.Imm(asm.R0, 0, drop(NDHidden)))
	// The packet ends where its header says, as it does when a kernel made it: what
	// the receiver takes for options is what is looked at here.
	a.get(asm.R9, network+4, asm.Half)
	a.add(
		asm.HostTo(asm.BE, asm.R9, asm.Half), asm.Add.Imm(asm.R9, 54),
		asm.LoadMem(asm.R0, asm.R6, skbLen, asm.Word), asm.JNE.Reg(asm.R0, asm.R9, drop(ND)),
		asm.Add.Imm(asm.R7, 8),
		asm.JEq.Imm(asm.R8, routerSolicitation, "nd_options"),
		asm.Add.Imm(asm.R7, -8),
	)
	a.load(atR7, message, 24, drop(Short))
	a.add(asm.Add.Imm(asm.R7, 24), asm.JEq.Imm(asm.R8, neighbourAdvertisement, "nd_target"))
	// Who asks without an address looks whether one is free, and that is its own.
	a.get(asm.R0, noSource, asm.Word)
	a.add(asm.JEq.Imm(asm.R0, 0, "nd_options"), asm.Ja.Label("nd_own"))
	a.label("nd_target")
	a.get(asm.R0, noSource, asm.Word)
	a.add(asm.JNE.Imm(asm.R0, 0, drop(ND)))
	a.label("nd_own")
	a.address6(maps, target, ND)

	a.label("nd_options")
	for range maxNDOptions {
		mac, next := a.fresh("nd_mac"), a.fresh("nd_next")
		a.add(asm.JEq.Reg(asm.R7, asm.R9, "nd_done"))
		a.load(atR7, option, 8, drop(ND))
		a.get(asm.R8, option+1, asm.Byte)
		a.get(asm.R0, option, asm.Byte)
		a.add(
			asm.JEq.Imm(asm.R8, 0, drop(ND)),
			asm.JEq.Imm(asm.R0, 1, mac), // source link-layer address
			asm.JEq.Imm(asm.R0, 2, mac), // target link-layer address
			asm.Ja.Label(next),
		)
		a.label(mac)
		a.add(asm.JNE.Imm(asm.R8, 1, drop(ND)))
		a.mac(maps, option+2, ND)
		a.label(next)
		a.add(asm.LSh.Imm(asm.R8, 3), asm.Add.Reg(asm.R7, asm.R8))
	}
	a.add(asm.JNE.Reg(asm.R7, asm.R9, drop(ND)))
	a.label("nd_done")
	a.add(asm.Mov.Imm(asm.R7, 54)) // of the message again, for the checksum
}

// checksum drops a packet that asks the kernel for a checksum where it would
// overwrite what was checked. The kernel writes it late, perhaps at another link.
func (a *assembly) checksum(l *skbLayout) {
	a.label("checksum")
	if l == nil {
		a.add(asm.Ja.Label("pass"))
		return
	}
	a.peek(l.summed, 1)
	a.get(asm.R0, scratch, asm.Byte)
	a.add(
		asm.RSh.Imm(asm.R0, l.summedShift), asm.And.Imm(asm.R0, 3),
		asm.JNE.Imm(asm.R0, checksumPartial, "pass"),
	)
	// R8: from the transport header to the checksum.
	a.add(asm.Mov.Imm(asm.R8, 0), asm.Sub.Reg(asm.R8, asm.R7))
	for _, field := range []struct {
		at int32
		op asm.ALUOp
	}{{l.start, asm.Add}, {l.offset, asm.Add}, {l.mac, asm.Sub}} {
		a.peek(field.at, 2)
		a.get(asm.R0, scratch, asm.Half)
		a.add(field.op.Reg(asm.R8, asm.R0))
	}
	a.get(asm.R0, shape, asm.Word)
	a.add(
		asm.JEq.Imm(asm.R0, checksumNowhere, drop(Checksum)),
		asm.JSLT.Imm(asm.R8, 0, drop(Checksum)),
		asm.JEq.Imm(asm.R0, checksumAnywhere, "pass"),
		asm.JEq.Imm(asm.R0, checksumUDP, "checksum_udp"),
		asm.JEq.Imm(asm.R8, 2, "pass"), // ICMP of both families
		asm.JEq.Imm(asm.R0, checksumICMPv6, drop(Checksum)),
		asm.JSLT.Imm(asm.R8, 4, drop(Checksum)),
		asm.Ja.Label("pass"),
	)
	a.label("checksum_udp")
	a.add(
		asm.JEq.Imm(asm.R8, 6, "pass"),
		asm.JSLT.Imm(asm.R8, 8, drop(Checksum)),
	)
}

// peek reads from the kernel's own structure of the packet.
func (a *assembly) peek(at, size int32) {
	a.add(
		asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, scratch),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Reg(asm.R3, asm.R6), asm.Add.Imm(asm.R3, at),
		asm.FnProbeReadKernel.Call(),
		asm.JNE.Imm(asm.R0, 0, drop(Checksum)),
	)
}
