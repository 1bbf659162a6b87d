// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMemoryIsMergeableOnlyWhereItMayBe reads from the kernel which memory it may merge (proc(5), smaps, flag "mg").
func TestMemoryIsMergeableOnlyWhereItMayBe(t *testing.T) {
	t.Parallel()
	for _, mergeable := range []bool{true, false} {
		s := newSpec(t)
		s.Mergeable = mergeable
		s.Max.MemoryBytes = s.MemoryBytes + growthBlock // what it may grow by as well
		vm := startVM(t, s)
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", vm.Record().PID))
		if err != nil {
			t.Fatal(err)
		}
		marked := 0
		for line := range strings.Lines(string(text)) {
			if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && strings.Contains(flags+" ", " mg ") {
				marked++
			}
		}
		// And QEMU's own memory, on kernels that can be asked for that.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/ksm_stat", vm.Record().PID))
		if name := "ksm_merge_any: "; err == nil && strings.Contains(string(stat), name) && strings.Contains(string(stat), name+"yes") != mergeable {
			t.Errorf("mergeable %v: the kernel says %s", mergeable, stat)
		}
		if mergeable != (marked >= 2) || !mergeable && marked > 0 {
			t.Errorf("mergeable %v: the kernel may merge %d areas of its memory", mergeable, marked)
		}
	}
}
