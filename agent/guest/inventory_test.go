// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

func TestAnInventoryNamesWhatHasComeAndGone(t *testing.T) {
	old := filepath.Join("/tmp", "inventory-"+strconv.Itoa(os.Getpid()))
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(old)
	before := inventory(t)
	if err := os.Rename(old, old+"-new"); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(old + "-new")
	held, err := os.Open(old + "-new")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	child := exec.Command("sleep", "100")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	left, gone := inventory(t).Since(before)
	for _, want := range []string{"file " + old + "-new", "descriptor of " + old + "-new", "process " + strconv.Itoa(child.Process.Pid)} {
		if !slices.Contains(left, want) {
			t.Errorf("%q is not among what has come: %q", want, left)
		}
	}
	if !slices.Contains(gone, "file "+old) {
		t.Errorf("the file that went is not among what has gone: %q", gone)
	}
}

func inventory(t *testing.T) Inventory {
	t.Helper()
	i, err := TakeInventory()
	if err != nil {
		t.Skipf("this machine does not let itself be looked at as a guest does: %v", err)
	}
	return i
}
