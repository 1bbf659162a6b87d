// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// The program of the containers in which a guest rehearses is as large as a small one usually is, and copies its input to its output.
const (
	programPages = 16
	programBase  = 0x400000
)

// programCode reads a byte of each of its pages, which come from the share one after the other, and then copies.
var programCode = []byte{
	0x48, 0xc7, 0xc3, 0x00, 0x00, 0x40, 0x00, //  mov $programBase, %rbx
	0xb9, programPages, 0x00, 0x00, 0x00, //      mov $programPages, %ecx
	0x8a, 0x03, //                             1: mov (%rbx), %al
	0x48, 0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, //  add $4096, %rbx
	0xff, 0xc9, //                                dec %ecx
	0x75, 0xf3, //                                jnz 1b
	0x31, 0xc0, //                             2: xor %eax, %eax           read(
	0x31, 0xff, //                                xor %edi, %edi             0,
	0x48, 0x8d, 0xb4, 0x24, 0x00, 0xf0, 0xff, 0xff, // lea -4096(%rsp), %rsi   buffer,
	0xba, 0x00, 0x10, 0x00, 0x00, //              mov $4096, %edx            4096)
	0x0f, 0x05, //                                syscall
	0x48, 0x85, 0xc0, //                          test %rax, %rax
	0x7e, 0x0d, //                                jle 3f
	0x89, 0xc2, //                                mov %eax, %edx            write(
	0xb8, 0x01, 0x00, 0x00, 0x00, //              mov $1, %eax               1, buffer, as many)
	0x89, 0xc7, //                                mov %eax, %edi
	0x0f, 0x05, //                                syscall
	0xeb, 0xdb, //                                jmp 2b
	0x31, 0xff, //                             3: xor %edi, %edi          exit_group(0)
	0xb8, 0xe7, 0x00, 0x00, 0x00, //              mov $231, %eax
	0x0f, 0x05, //                                syscall
}

// rehearsalProgram is the file (elf(5)): one segment that holds all of it.
func rehearsalProgram() []byte {
	const head, entry = 64, 56
	size := uint64(programPages * 4096)
	var b bytes.Buffer
	ident := [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}
	for _, part := range []any{
		elf.Header64{
			Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Entry: programBase + head + entry, Phoff: head, Ehsize: head, Phentsize: entry, Phnum: 1,
		},
		elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: programBase, Filesz: size, Memsz: size, Align: 4096},
		programCode,
	} {
		_ = binary.Write(&b, binary.LittleEndian, part) // of fixed size, into memory: it cannot fail
	}
	return append(b.Bytes(), make([]byte, int(size)-b.Len())...)
}
