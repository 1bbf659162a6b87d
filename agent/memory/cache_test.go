// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestForAnotherMachineWhatIsNotUsedGoesFirst: what the containers read all the time is halved only when there is nothing else.
func TestForAnotherMachineWhatIsNotUsedGoesFirst(t *testing.T) {
	for _, c := range []struct{ inactive, active, given uint64 }{
		{40 * mib, 200 * mib, 40 * mib},
		{4 * mib, 200 * mib, 102 * mib},
		{0, 4 * mib, 0},
	} {
		g := newGuest(t)
		if err := g.Set(machineOf(256*mib), 0); err != nil {
			t.Fatal(err)
		}
		stat := fmt.Sprintf("inactive_file %d\nactive_file %d\n", c.inactive, c.active)
		if err := os.WriteFile(filepath.Join(string(g.group), "memory.stat"), []byte(stat), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(string(g.group), "memory.reclaim"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		g.Trim()
		if got := g.group.number("memory.reclaim"); got != c.given {
			t.Errorf("of %d MiB not used and %d used it gives up %d", c.inactive/mib, c.active/mib, got/mib)
		}
	}
}
