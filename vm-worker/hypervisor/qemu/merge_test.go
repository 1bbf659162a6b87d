// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"bulkhead/vm-worker/hypervisor"
)

// TestMemoryIsMergeableOnlyWhereItMayBe reads from the kernel which memory it may merge (proc(5), smaps, flag "mg"), of VMs
// that are started, all of whose memory it may be, and of such that are forked, which mark what is theirs themselves.
func TestMemoryIsMergeableOnlyWhereItMayBe(t *testing.T) {
	t.Parallel()
	for _, mergeable := range []bool{true, false} {
		t.Run(fmt.Sprint("started, ", mergeable), func(t *testing.T) {
			t.Parallel()
			s := newSpec(t)
			s.Mergeable = mergeable
			s.Max.MemoryBytes = s.MemoryBytes + growthBlock // what it may grow by as well
			v := startVM(t, s)
			mergeableAreas(t, v, mergeable)
			// And QEMU's own memory, on kernels that can be asked for that.
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/ksm_stat", v.Record().PID))
			if name := "ksm_merge_any: "; err == nil && strings.Contains(string(stat), name) && strings.Contains(string(stat), name+"yes") != mergeable {
				t.Errorf("the kernel says %s", stat)
			}
		})
	}
	t.Run("forked", func(t *testing.T) {
		t.Parallel()
		d, s := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
		from := makeTemplate(t, d, s)
		for _, mergeable := range []bool{true, false, true} { // one after the other, from the same process
			s.Mergeable = mergeable
			v := clone(t, d, s, from, fmt.Sprint("c", len(list(t, s.Dir))))
			if !v.(*vm).forked {
				t.Fatal("it was not forked:", from.Worn())
			}
			for _, area := range mergeableAreas(t, v, mergeable) {
				if strings.Fields(area)[1] == "rwxp" {
					t.Errorf("the kernel may merge translated code: %s", area)
				}
			}
		}
	})
}

// mergeableAreas are those that the kernel may merge. With the guest's memory, and that by which it may grow, they are two at least.
func mergeableAreas(t *testing.T, v hypervisor.VM, mergeable bool) (areas []string) {
	t.Helper()
	head, guest := "", 0
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/smaps", v.Record().PID))) {
		name, flags, _ := strings.Cut(strings.TrimSpace(line), ":")
		if strings.Contains(name, "-") { // "from-to modes offset device inode path", of which the device has a colon
			head = strings.TrimSpace(line)
		}
		if name == "VmFlags" && strings.Contains(flags+" ", " mg ") {
			areas = append(areas, head)
			var from, to uint64
			if _, err := fmt.Sscanf(head, "%x-%x", &from, &to); err == nil && to-from >= growthBlock {
				guest++
			}
		}
	}
	switch {
	case mergeable && (len(areas) < 2 || guest < 2):
		t.Errorf("the kernel may merge %d areas of a VM that says so, %d of them as large as guest memory: %q", len(areas), guest, areas)
	case !mergeable && len(areas) > 0:
		t.Errorf("the kernel may merge areas of a VM that does not say so: %q", areas)
	}
	return areas
}
