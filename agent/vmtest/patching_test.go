// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"testing"

	"bulkhead/agent/vmtest"
)

// TestTheKernelMayChangeItsCodeWhileItRuns: under TCG with two processors the kernel of Debian
// dies of it within seconds (deploy/guest/patches, 0004).
func TestTheKernelMayChangeItsCodeWhileItRuns(t *testing.T) {
	t.Parallel()
	vm := vmtest.BootMachine(t, vmtest.Machine{Options: []string{"-smp", "2"}})
	busyboxRootfs(t, vm, "patches")
	buildProbe(t, vm, "patches", "patchprobe")
	ct := create(t, vm, "patches", sh("exec patchprobe 15"))
	ct.start(t)
	if code := exit(t, ct.Relay); code != 0 || ct.Output() != "still there, true\n" {
		t.Errorf("it ended with %d and says %s%s", code, ct.Output(), ct.ErrOutput())
	}
}
