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

// admitSetUp lets through one question that libcontainer asks when a filter is already in force: of which mount a
// descriptor of /proc is, by statx(2), to be sure that it is of the kernel's /proc. Lists of allowed calls that are older than
// statx, as validation suites and some images' profiles have them, would keep every container from starting. Nothing else
// that statx tells is let through, and a list that names statx stays as it is.
func admitSetUp(s *specs.LinuxSeccomp) {
	if s == nil || s.DefaultAction == specs.ActAllow || s.DefaultAction == specs.ActLog {
		return
	}
	for _, rule := range s.Syscalls {
		if slices.Contains(rule.Names, "statx") {
			return
		}
	}
	s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{
		Names: []string{"statx"}, Action: specs.ActAllow,
		Args: []specs.LinuxSeccompArg{
			{Index: 2, Op: specs.OpEqualTo, Value: unix.AT_EMPTY_PATH | unix.AT_SYMLINK_NOFOLLOW},
			{Index: 3, Op: specs.OpEqualTo, Value: unix.STATX_MNT_ID | unix.STATX_MNT_ID_UNIQUE},
		},
	})
}
