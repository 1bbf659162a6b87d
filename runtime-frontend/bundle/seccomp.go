// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What the guest's seccomp knows. SCMP_ACT_NOTIFY is missing: its listener would be a host process. So is the flag that
// belongs to it, which is known and not supported.
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

const (
	noSeccompNotify = "a host process cannot answer for system calls made inside a virtual machine (seccomp notify)"
	maxErrno        = 4095 // MAX_ERRNO, include/linux/err.h
)

// SeccompActions, SeccompOperators, SeccompArchs and SeccompFlags are what "features" reports; KnownSeccompFlags has
// also those that are refused.
func SeccompActions() []string   { return slices.Clone(seccompActions) }
func SeccompOperators() []string { return slices.Clone(seccompOperators) }
func SeccompArchs() []string     { return slices.Clone(seccompArchs) }
func SeccompFlags() []string     { return slices.Clone(seccompFlags) }
func KnownSeccompFlags() []string {
	return append(SeccompFlags(), string(specs.LinuxSeccompFlagWaitKillableRecv))
}

// checkSeccomp names what the guest would choke on. Unknown system calls are
// left alone: profiles list those of newer kernels.
func checkSeccomp(s *specs.LinuxSeccomp) error {
	if s == nil || s.DefaultAction == "" && len(s.Syscalls) == 0 { // runc's reading: no filter
		return nil
	}
	var errs []error
	say := func(property, reason string) { // once: a profile may repeat a fault a hundred times
		err := refuse(property, reason)
		if !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	known := func(property string, table []string, value string) {
		if slices.Contains(table, value) {
			return
		}
		reason := fmt.Sprintf("unknown value %q", value)
		if value == string(specs.ActNotify) || value == string(specs.LinuxSeccompFlagWaitKillableRecv) {
			reason = value + ": " + noSeccompNotify
		}
		say(property, reason)
	}
	// The specification wants an error number with an action that has none to fail (config-linux.md#seccomp).
	errno := func(property string, action specs.LinuxSeccompAction, errno *uint) {
		switch {
		case errno == nil:
		case action != specs.ActErrno && action != specs.ActTrace:
			say(property, fmt.Sprintf("%s has no error number, only SCMP_ACT_ERRNO and SCMP_ACT_TRACE have", action))
		case *errno > maxErrno:
			say(property, fmt.Sprintf("%d is above the highest error number, %d", *errno, maxErrno))
		}
	}
	known("linux.seccomp.defaultAction", seccompActions, string(s.DefaultAction))
	errno("linux.seccomp.defaultErrnoRet", s.DefaultAction, s.DefaultErrnoRet)
	for _, arch := range s.Architectures {
		known("linux.seccomp.architectures", seccompArchs, string(arch))
	}
	for _, flag := range s.Flags {
		known("linux.seccomp.flags", seccompFlags, string(flag))
	}
	for _, call := range s.Syscalls {
		known("linux.seccomp.syscalls[].action", seccompActions, string(call.Action))
		errno("linux.seccomp.syscalls[].errnoRet", call.Action, call.ErrnoRet)
		for _, arg := range call.Args {
			known("linux.seccomp.syscalls[].args[].op", seccompOperators, string(arg.Op))
			if arg.Index > 5 {
				say("linux.seccomp.syscalls[].args[].index", fmt.Sprintf("%d: a system call has six arguments, 0 to 5", arg.Index))
			}
		}
	}
	return errors.Join(errs...)
}
