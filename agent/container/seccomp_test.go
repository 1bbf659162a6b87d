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
