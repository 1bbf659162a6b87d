// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf/asm"
)

// assembly is a program in the making. R6 holds the packet throughout.
type assembly struct {
	ins    asm.Instructions
	symbol string // of the next instruction
	blocks int
}

func (a *assembly) add(ins ...asm.Instruction) {
	for _, in := range ins {
		if a.symbol != "" {
			in = in.WithSymbol(a.symbol)
			a.symbol = ""
		}
		a.ins = append(a.ins, in)
	}
}

// label names the next instruction. Two labels in a row get a jump between them,
// as an instruction has one name.
func (a *assembly) label(name string) {
	if a.symbol != "" {
		a.add(asm.Ja.Label(name))
	}
	a.symbol = name
}

// fresh is a label that nothing else has.
func (a *assembly) fresh(name string) string {
	a.blocks++
	return fmt.Sprintf("%s_%d", name, a.blocks)
}

// load copies n bytes of the packet at the offset in R7 (or at, if that is not
// negative) to the frame at fp+to, and jumps to short when they are not there.
// Copying works for packets in pieces, too, as a VM's are.
func (a *assembly) load(at int, to int16, n int, short string) {
	if at >= 0 {
		a.add(asm.Mov.Imm(asm.R2, int32(at)))
	} else {
		a.add(asm.Mov.Reg(asm.R2, asm.R7))
	}
	a.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, int32(to)),
		asm.Mov.Imm(asm.R4, int32(n)),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, short),
	)
}

const atR7 = -1

// lookup leaves in R0 whether the map has the key at fp+key.
func (a *assembly) lookup(fd int, key int16) {
	a.add(
		asm.LoadMapPtr(asm.R1, fd),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, int32(key)),
		asm.FnMapLookupElem.Call(),
	)
}

func (a *assembly) get(dst asm.Register, at int16, size asm.Size) {
	a.add(asm.LoadMem(dst, asm.RFP, at, size))
}

func (a *assembly) put(at int16, src asm.Register, size asm.Size) {
	a.add(asm.StoreMem(asm.RFP, at, src, size))
}

// be16 is how a 16-bit number of the wire reads in a register.
func be16(v uint16) int32 {
	return int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)))
}

func be32(v uint32) int32 {
	return int32(binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, v)))
}
