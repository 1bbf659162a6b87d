// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package shadow

import (
	"strings"
	"testing"
)

func TestAFileGetsTheLineEndsThatTheProgramWrote(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ shown, written string }{
		{"a\r\nb\r\n", "a\nb\n"}, {"progress\rmore\r\n", "progress\rmore\n"}, {"a\r\r\n", "a\r\n"}, {"end\r", "end\r"}, {"raw\n", "raw\n"},
	} {
		for size := 1; size <= len(c.shown); size++ { // wherever the reads cut it
			var got strings.Builder
			lines := &lineEnds{to: &got}
			for rest := c.shown; rest != ""; {
				n := min(size, len(rest))
				if _, err := lines.Write([]byte(rest[:n])); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := lines.flush(); err != nil || got.String() != c.written {
				t.Errorf("%q in pieces of %d becomes %q, %v", c.shown, size, got.String(), err)
			}
		}
	}
}
