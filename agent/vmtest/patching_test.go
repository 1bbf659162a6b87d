// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	"bulkhead/agent/vmtest"
)

// TestTheKernelMayChangeItsCodeWhileItRuns: under TCG with two processors the kernel of Debian
// dies of it within seconds (deploy/guest/patches, 0004).
func TestTheKernelMayChangeItsCodeWhileItRuns(t *testing.T) {
	t.Parallel()
	vm := vmtest.BootMachine(t, vmtest.Machine{Options: []string{"-smp", "2"}})
	busyboxRootfs(t, vm, "patches")
	build := exec.Command("go", "build", "-o", filepath.Join(vm.Share, "patches/rootfs/bin/patchprobe"), "./testdata/patchprobe")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ct := create(t, vm, "patches", sh("exec patchprobe 15"))
	ct.start(t)
	if code := exit(t, ct.Relay); code != 0 || ct.Output() != "still there, true\n" {
		t.Errorf("it ended with %d and says %s%s", code, ct.Output(), ct.ErrOutput())
	}
}
