// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// x32Bit marks the system calls of the x32 ABI, which shares an architecture with x86-64 (asm/unistd.h,
// __X32_SYSCALL_BIT).
const x32Bit = 0x40000000

// hasX32 asks the kernel once whether it knows the x32 ABI.
var hasX32 = sync.OnceValue(func() bool {
	_, _, errno := unix.RawSyscall(x32Bit|unix.SYS_GETPID, 0, 0, 0)
	return !errors.Is(errno, unix.ENOSYS)
})

// trimSeccomp takes the x32 ABI out of a filter where the kernel has none. No call of that ABI can succeed there with
// any filter, and compiling its half of the rules took most of the time of a filter, at each create and each exec.
func trimSeccomp(s *specs.LinuxSeccomp, x32 func() bool) {
	if s == nil || len(s.Architectures) < 2 || !slices.Contains(s.Architectures, specs.ArchX32) || x32() {
		return
	}
	s.Architectures = slices.DeleteFunc(s.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
}
