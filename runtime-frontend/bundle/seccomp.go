// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What the guest's seccomp knows. SCMP_ACT_NOTIFY is missing: its listener
// would be a host process.
var (
	seccompActions = []string{
		"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
		"SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
	}
	seccompOperators = []string{
		"SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
	}
	seccompArchs = []string{
		"SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64",
		"SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PPC",
		"SCMP_ARCH_PPC64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X",
		"SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64",
	}
	seccompFlags = []string{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"}
)

// SeccompActions, SeccompOperators, SeccompArchs and SeccompFlags are what
// "features" reports.
func SeccompActions() []string   { return slices.Clone(seccompActions) }
func SeccompOperators() []string { return slices.Clone(seccompOperators) }
func SeccompArchs() []string     { return slices.Clone(seccompArchs) }
func SeccompFlags() []string     { return slices.Clone(seccompFlags) }

// checkSeccomp names what the guest would choke on. Unknown system calls are
// left alone: profiles list those of newer kernels.
func checkSeccomp(s *specs.LinuxSeccomp) error {
	if s == nil {
		return nil
	}
	var errs []error
	known := func(property string, table []string, value string) {
		if slices.Contains(table, value) {
			return
		}
		reason := fmt.Sprintf("unknown value %q", value)
		if value == string(specs.ActNotify) {
			reason = "SCMP_ACT_NOTIFY: a host process cannot answer for system calls made inside a virtual machine"
		}
		err := refuse(property, reason)
		if !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	known("linux.seccomp.defaultAction", seccompActions, string(s.DefaultAction))
	for _, arch := range s.Architectures {
		known("linux.seccomp.architectures", seccompArchs, string(arch))
	}
	for _, flag := range s.Flags {
		known("linux.seccomp.flags", seccompFlags, string(flag))
	}
	for _, call := range s.Syscalls {
		known("linux.seccomp.syscalls[].action", seccompActions, string(call.Action))
		for _, arg := range call.Args {
			known("linux.seccomp.syscalls[].args[].op", seccompOperators, string(arg.Op))
		}
	}
	return errors.Join(errs...)
}
