// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/vm-worker/hypervisor"
)

// loopDevice makes a block device of 1 MiB that ends with the test.
func loopDevice(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("block devices need root")
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return device
}

func openDisk(t *testing.T, device string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(device, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func beginning(t *testing.T, device string, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := openDisk(t, device, os.O_RDONLY).ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A disk is plugged into the running VM, written to, kept through a change of the
// worker, and taken out again, while another stays.
func TestDisksComeAndGoWhileTheVMRuns(t *testing.T) {
	t.Parallel()
	startedAndForked(t, disksComeAndGo)
}

func disksComeAndGo(t *testing.T, driver *Driver, v hypervisor.VM) {
	first, second := loopDevice(t), loopDevice(t)
	t.Cleanup(func() { killVM(t, v) })
	c := connect(t, v)
	c.awake(v)
	attach := func(id, device string, readOnly bool) {
		t.Helper()
		flag := os.O_RDWR
		if readOnly {
			flag = os.O_RDONLY
		}
		if err := v.AttachDisk(t.Context(), hypervisor.Disk{ID: id, File: openDisk(t, device, flag), ReadOnly: readOnly}); err != nil {
			t.Fatal(err)
		}
	}
	attach("da-0", first, false)
	attach("db-0", second, true)
	if got := c.ask("disk write da-0 written-by-the-guest"); got != "ok" {
		t.Fatalf("writing to the disk: %s", got)
	}
	if got := beginning(t, first, 20); got != "written-by-the-guest" {
		t.Errorf("the host reads %q", got)
	}
	if got := c.ask("disk write db-0 x"); !strings.Contains(got, "operation not permitted") && !strings.Contains(got, "permission denied") {
		t.Errorf("writing to a read-only disk: %s", got)
	}
	// A descriptor that cannot be written is no disk that can.
	err := v.AttachDisk(t.Context(), hypervisor.Disk{ID: "dc-0", File: openDisk(t, first, os.O_RDONLY)})
	if err == nil {
		t.Error("a read-only descriptor became a writable disk")
	}
	if err := v.AttachDisk(t.Context(), hypervisor.Disk{ID: "dc-0", File: openDisk(t, first, os.O_RDWR)}); err != nil {
		t.Errorf("a failed attach left something behind: %v", err)
	}

	rec := v.Record()
	v.Release()
	if v, err = driver.Adopt(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	if err := v.DetachDisks(t.Context(), "da-"); err != nil {
		t.Fatal(err)
	}
	if got := c.ask("disk gone da-0"); got != "ok" {
		t.Error(got)
	}
	if got := c.ask("disk write dc-0 still"); got != "ok" {
		t.Errorf("the other disk went too: %s", got)
	}
	if err := v.DetachDisks(t.Context(), "da-"); err != nil {
		t.Errorf("detaching what is gone: %v", err)
	}
	attach("da-0", first, false) // its place and its name are free again
}
