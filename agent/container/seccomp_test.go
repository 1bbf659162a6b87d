// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestFiltersHoldNoRulesForAnABITheKernelLacks(t *testing.T) {
	t.Parallel()
	yes, no := func() bool { return true }, func() bool { return false }
	for _, c := range []struct {
		x32      func() bool
		in, want []specs.Arch
	}{
		{no, []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}, []specs.Arch{specs.ArchX86_64, specs.ArchX86}},
		{yes, []specs.Arch{specs.ArchX86_64, specs.ArchX32}, []specs.Arch{specs.ArchX86_64, specs.ArchX32}},
		// An empty list would mean the kernel's own architecture.
		{no, []specs.Arch{specs.ArchX32}, []specs.Arch{specs.ArchX32}},
		{no, nil, nil},
	} {
		s := &specs.LinuxSeccomp{Architectures: slices.Clone(c.in)}
		if trimSeccomp(s, c.x32); !slices.Equal(s.Architectures, c.want) {
			t.Errorf("%v became %v, want %v", c.in, s.Architectures, c.want)
		}
	}
	trimSeccomp(nil, no)
}

func TestOldFiltersLetOneQuestionOfTheSetUpThrough(t *testing.T) {
	t.Parallel()
	read := specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow}
	for name, c := range map[string]struct {
		filter specs.LinuxSeccomp
		added  bool
	}{
		"a list of what is allowed": {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{read}}, true},
		"the same that kills":       {specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess}, true},
		"a list of what is not":     {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{read}}, false},
		"one that names the call": {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"statx"}, Action: specs.ActErrno},
		}}, false},
	} {
		before := len(c.filter.Syscalls)
		admitSetUp(&c.filter)
		added := len(c.filter.Syscalls) - before
		if (added == 1) != c.added || added > 1 {
			t.Errorf("%s got %d rules more", name, added)
		}
		if added == 1 && len(c.filter.Syscalls[before].Args) != 2 {
			t.Errorf("%s lets more through than the question: %+v", name, c.filter.Syscalls[before])
		}
	}
	admitSetUp(nil)
}
