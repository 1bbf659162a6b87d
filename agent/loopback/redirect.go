// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	flows "bulkhead/bus/loopback"
)

// redirect has the kernel change the port of what programs connect or send to, at the
// moment they say it, and change it back in what they are told of their peers. Unlike
// translation of addresses in packets it costs packets nothing, and a container that
// empties the tables of its packet filter loses nothing. It holds for every process of
// the guest, and acts by network namespace: containers within the container, with a
// resolver of their own at the same address, are left alone.
type redirect struct {
	there, back *ebpf.Map // from what is asked for to where it is, and back
	held        []interface{ Close() error }
}

// redirectKey is a key of both maps, in the layout that the programs write.
type redirectKey struct {
	Netns    uint64   // its cookie
	Address  [16]byte // IPv4 is mapped into IPv6
	Port     [4]byte  // as user_port of struct bpf_sock_addr
	Protocol uint32
}

const (
	keySize      = 32
	maxRedirects = 1024
)

// Offsets in struct bpf_sock_addr (include/uapi/linux/bpf.h).
const (
	addrIP4      = 4
	addrIP6      = 8
	addrPort     = 24
	addrProtocol = 36
)

// attachRedirect puts the programs at the root of the cgroups.
func attachRedirect(cgroup string) (_ *redirect, err error) {
	r := &redirect{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("redirecting loopback ports: %w", err), r.Close())
		}
	}()
	for name, m := range map[string]**ebpf.Map{"lo_there": &r.there, "lo_back": &r.back} {
		*m, err = ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.Hash, KeySize: keySize, ValueSize: 4, MaxEntries: maxRedirects})
		if err != nil {
			return nil, err
		}
		r.held = append(r.held, *m)
	}
	for _, h := range []struct {
		at   ebpf.AttachType
		six  bool
		maps *ebpf.Map
	}{
		{ebpf.AttachCGroupInet4Connect, false, r.there}, {ebpf.AttachCGroupInet6Connect, true, r.there},
		{ebpf.AttachCGroupUDP4Sendmsg, false, r.there}, {ebpf.AttachCGroupUDP6Sendmsg, true, r.there},
		{ebpf.AttachCGroupUDP4Recvmsg, false, r.back}, {ebpf.AttachCGroupUDP6Recvmsg, true, r.back},
		{ebpf.AttachCgroupInet4GetPeername, false, r.back}, {ebpf.AttachCgroupInet6GetPeername, true, r.back},
	} {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "lo_redirect", Type: ebpf.CGroupSockAddr, AttachType: h.at, License: "Apache-2.0",
			Instructions: redirectProgram(h.six, h.maps.FD()),
		})
		if err != nil {
			return nil, err
		}
		r.held = append(r.held, prog)
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.at, Program: prog})
		if err != nil {
			return nil, err
		}
		r.held = append(r.held, l)
	}
	return r, nil
}

// redirectProgram looks the address up and puts the port found in its place.
func redirectProgram(six bool, fd int) asm.Instructions {
	const key = -keySize
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetNetnsCookie.Call(),
		asm.StoreMem(asm.RFP, key, asm.R0, asm.DWord),
	}
	if six {
		for i := int16(0); i < 16; i += 4 {
			ins = append(ins, asm.LoadMem(asm.R0, asm.R6, addrIP6+i, asm.Word), asm.StoreMem(asm.RFP, key+8+i, asm.R0, asm.Word))
		}
	} else {
		mapped := int32(binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff}))
		ins = append(ins,
			asm.Mov.Imm(asm.R0, 0), asm.StoreMem(asm.RFP, key+8, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R0, mapped), asm.StoreMem(asm.RFP, key+16, asm.R0, asm.Word),
			asm.LoadMem(asm.R0, asm.R6, addrIP4, asm.Word), asm.StoreMem(asm.RFP, key+20, asm.R0, asm.Word),
		)
	}
	return append(ins,
		asm.LoadMem(asm.R0, asm.R6, addrPort, asm.Word), asm.StoreMem(asm.RFP, key+24, asm.R0, asm.Word),
		asm.LoadMem(asm.R0, asm.R6, addrProtocol, asm.Word), asm.StoreMem(asm.RFP, key+28, asm.R0, asm.Word),
		asm.LoadMapPtr(asm.R1, fd),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.StoreMem(asm.R6, addrPort, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("out"), // go on
		asm.Return(),
	)
}

func keyOf(netns uint64, protocol flows.Protocol, a netip.AddrPort) redirectKey {
	return redirectKey{Netns: netns, Address: a.Addr().As16(), Port: portBytes(a.Port()), Protocol: uint32(protocol)}
}

// portBytes is user_port: 16 bits in network order, in the low half of 32.
func portBytes(port uint16) (b [4]byte) {
	v := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
	binary.NativeEndian.PutUint32(b[:], uint32(v))
	return b
}

// set leads one address to where it is listened for. What was set for it before is
// replaced in one step.
func (r *redirect) set(netns uint64, t flows.Target, port uint16) error {
	at := netip.AddrPortFrom(t.Address.Addr(), port)
	return errors.Join(
		r.back.Put(keyOf(netns, t.Protocol, at), portBytes(t.Address.Port())),
		r.there.Put(keyOf(netns, t.Protocol, t.Address), portBytes(port)),
	)
}

// unset ends that. Programs that are connected stay so.
func (r *redirect) unset(netns uint64, t flows.Target, port uint16) {
	_ = r.there.Delete(keyOf(netns, t.Protocol, t.Address))
	_ = r.back.Delete(keyOf(netns, t.Protocol, netip.AddrPortFrom(t.Address.Addr(), port)))
}

func (r *redirect) Close() error {
	var errs []error
	for _, h := range r.held {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}
