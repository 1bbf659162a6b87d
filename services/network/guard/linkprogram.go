// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import "github.com/cilium/ebpf/asm"

// The stack of the program that judges what comes from outside, beside eth and
// network, as offsets from the frame pointer.
const (
	tuple = -128 // 36: struct bpf_sock_tuple of either family
	ports = -136 // 4
)

const (
	currentNetns = -1 // BPF_F_CURRENT_NETNS
	sockState    = 72 // state of struct bpf_sock (include/uapi/linux/bpf.h)
)

// States of sockets that are nobody's conversation (include/net/tcp_states.h).
// What is listened for in the namespace is the VM's to answer.
const (
	stateClose      = 7
	stateListen     = 10
	stateNewSynRecv = 12
)

// linkProgram decides for one packet that arrives on the link: it stays in the
// namespace (a connected socket there waits for it), goes to both (by which
// machines find each other: answers of ARP and neighbour discovery, and errors), or
// is left to the next filter, which takes it to the VM. tap is the interface by
// which the VM gets its copy.
//
// The namespace hears no question, so it never answers for the VM.
func linkProgram(tap int) asm.Instructions {
	a := &assembly{}
	a.add(asm.Mov.Reg(asm.R6, asm.R1))
	a.add(asm.LoadMem(asm.R0, asm.R6, skbVLANPresent, asm.Word), asm.JNE.Imm(asm.R0, 0, "vm"))
	a.load(0, eth, 34, "vm")
	a.get(asm.R0, eth+12, asm.Half)
	a.add(
		asm.JEq.Imm(asm.R0, be16(0x0800), "ipv4"),
		asm.JEq.Imm(asm.R0, be16(0x86dd), "ipv6"),
		asm.JNE.Imm(asm.R0, be16(0x0806), "vm"),
	)
	a.get(asm.R0, network+6, asm.Half)
	a.add(asm.JEq.Imm(asm.R0, be16(2), "both"), asm.Ja.Label("vm")) // an answer of ARP

	a.label("ipv4")
	a.get(asm.R7, network, asm.Byte)
	a.add(asm.And.Imm(asm.R7, 0xf), asm.LSh.Imm(asm.R7, 2), asm.Add.Imm(asm.R7, 14))
	a.get(asm.R8, network+9, asm.Byte)
	a.get(asm.R0, network+6, asm.Half)
	a.add(
		asm.And.Imm(asm.R0, be16(0x3fff)), asm.JNE.Imm(asm.R0, 0, "vm"), // a fragment names no socket
	)
	a.load(atR7, ports, 4, "vm")
	a.get(asm.R0, network+12, asm.Word)
	a.put(tuple, asm.R0, asm.Word)
	a.get(asm.R0, network+16, asm.Word)
	a.put(tuple+4, asm.R0, asm.Word)
	a.get(asm.R0, ports, asm.Word)
	a.put(tuple+8, asm.R0, asm.Word)
	a.add(asm.Mov.Imm(asm.R9, 12), asm.JNE.Imm(asm.R8, protoICMP, "sockets"))
	a.get(asm.R0, ports, asm.Byte)
	a.add(
		asm.JEq.Imm(asm.R0, 3, "both"),  // destination unreachable
		asm.JEq.Imm(asm.R0, 11, "both"), // time exceeded
		asm.JEq.Imm(asm.R0, 12, "both"), // parameter problem
		asm.Ja.Label("vm"),
	)

	a.label("ipv6")
	a.load(34, network+20, 20, "vm")
	a.add(asm.Mov.Imm(asm.R7, 54))
	a.get(asm.R8, network+6, asm.Byte)
	a.load(atR7, ports, 4, "vm")
	for i := int16(0); i < 32; i += 4 {
		a.get(asm.R0, network+8+i, asm.Word)
		a.put(tuple+i, asm.R0, asm.Word)
	}
	a.get(asm.R0, ports, asm.Word)
	a.put(tuple+32, asm.R0, asm.Word)
	a.add(asm.Mov.Imm(asm.R9, 36), asm.JNE.Imm(asm.R8, protoICMPv6, "sockets"))
	a.get(asm.R0, ports, asm.Byte)
	a.add(
		asm.JEq.Imm(asm.R0, 0, "vm"), asm.JLE.Imm(asm.R0, 4, "both"), // errors
		asm.JEq.Imm(asm.R0, 134, "both"), // router advertisement: what the namespace makes of it, the VM gets
		asm.JEq.Imm(asm.R0, 136, "both"), // neighbour advertisement
		asm.Ja.Label("vm"),
	)

	a.label("sockets")
	a.add(
		asm.JEq.Imm(asm.R8, protoTCP, "tcp"),
		asm.JNE.Imm(asm.R8, protoUDP, "vm"),
	)
	for _, l := range []struct {
		size   int32
		family string
	}{{12, "4"}, {36, "6"}} {
		// The size of the tuple must be a constant to the verifier.
		a.add(asm.JEq.Imm(asm.R9, l.size, "udp"+l.family))
	}
	a.add(asm.Ja.Label("vm"))
	a.label("tcp")
	a.add(asm.JEq.Imm(asm.R9, 12, "tcp4"))
	a.find(asm.FnSkcLookupTcp, 36)
	a.label("tcp4")
	a.find(asm.FnSkcLookupTcp, 12)
	a.label("udp6")
	a.find(asm.FnSkLookupUdp, 36)
	a.label("udp4")
	a.find(asm.FnSkLookupUdp, 12)

	a.label("both")
	a.add(
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, int32(tap)), asm.Mov.Imm(asm.R3, 0),
		asm.FnCloneRedirect.Call(),
	)
	a.label("namespace")
	a.add(asm.Mov.Imm(asm.R0, actOK), asm.Return())
	a.label("vm")
	a.add(asm.Mov.Imm(asm.R0, actUnspec), asm.Return())
	return a.ins
}

// find asks for the namespace's socket of the packet and decides.
func (a *assembly) find(lookup asm.BuiltinFunc, size int32) {
	a.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, tuple),
		asm.Mov.Imm(asm.R3, size),
		asm.Mov.Imm(asm.R4, currentNetns),
		asm.Mov.Imm(asm.R5, 0),
		lookup.Call(),
		asm.JEq.Imm(asm.R0, 0, "vm"),
		asm.LoadMem(asm.R7, asm.R0, sockState, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.FnSkRelease.Call(),
		asm.JEq.Imm(asm.R7, stateClose, "vm"), // UDP that is not connected
		asm.JEq.Imm(asm.R7, stateListen, "vm"),
		asm.JEq.Imm(asm.R7, stateNewSynRecv, "vm"),
		asm.Ja.Label("namespace"),
	)
}
