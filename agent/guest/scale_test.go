// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import "testing"

func TestAParameterIsRaisedAndNeverLowered(t *testing.T) {
	for _, c := range []struct {
		name, has string
		values    []uint64
		want      string
		higher    bool
	}{
		{"lower", "512\n", []uint64{4864}, "4864", true},
		{"higher", "9000\n", []uint64{4864}, "9000", false},
		{"each for itself", "1024\t131072\t500000\n", []uint64{2048, 4096, 6291456}, "2048 131072 6291456", true},
		{"no number", "max\n", []uint64{1}, "max", false},
	} {
		if got, higher := raised(c.has, c.values); got != c.want || higher != c.higher {
			t.Errorf("%s: %q, %t, want %q, %t", c.name, got, higher, c.want, c.higher)
		}
	}
}
