// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"slices"
	"testing"

	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestSeccompTablesAreTheGuests: what passes here, the library that compiles the filter in the guest knows, and what it
// knows passes here but for what needs a process of the host.
func TestSeccompTablesAreTheGuests(t *testing.T) {
	for _, c := range []struct {
		what        string
		table, want []string
	}{
		{"actions", append(SeccompActions(), string(specs.ActNotify)), seccomp.KnownActions()},
		{"operators", SeccompOperators(), seccomp.KnownOperators()},
		{"architectures", SeccompArchs(), seccomp.KnownArchs()},
		{"flags", KnownSeccompFlags(), seccomp.KnownFlags()},
	} {
		if got, want := slices.Sorted(slices.Values(c.table)), slices.Sorted(slices.Values(c.want)); !slices.Equal(got, want) {
			t.Errorf("%s are %v, the guest knows %v", c.what, got, want)
		}
	}
	if err := checkSeccomp(&specs.LinuxSeccomp{}); err != nil {
		t.Errorf("a filter without a rule: %v", err)
	}
}
