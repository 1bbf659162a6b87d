// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnlyAnEnginesSharedMemoryIsTheGuests: everything else at /dev/shm stays the host's.
func TestOnlyAnEnginesSharedMemoryIsTheGuests(t *testing.T) {
	mount := func(name string) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("shm", dir, "tmpfs", 0, "size=3m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		return dir
	}
	full, plain := mount("shm"), filepath.Join(t.TempDir(), "shm")
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(mount("tmpfs"), "shm")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		tree tree
		is   bool
	}{
		{"an engine's", tree{source: mount("shm"), destination: "/dev/shm", isDir: true}, true},
		{"one that holds files", tree{source: full, destination: "/dev/shm", isDir: true}, false},
		{"a tmpfs of another name", tree{source: mount("scratch"), destination: "/dev/shm", isDir: true}, false},
		{"a directory of a tmpfs", tree{source: below, destination: "/dev/shm", isDir: true}, false},
		{"a directory of a disk", tree{source: plain, destination: "/dev/shm", isDir: true}, false},
		{"one for elsewhere", tree{source: mount("shm"), destination: "/data", isDir: true}, false},
		{"one that is read-only", tree{source: mount("shm"), destination: "/dev/shm", isDir: true, readOnly: true}, false},
		{"the host's own", tree{source: "/dev/shm", destination: "/dev/shm", isDir: true}, false},
	} {
		f, err := c.tree.open()
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.tree.sharedMemory(f)
		f.Close()
		if err != nil || (got != nil) != c.is {
			t.Errorf("%s is taken for %v, %v", c.what, got, err)
		}
		if got != nil && got.SizeBytes != 3<<20 {
			t.Errorf("its size is %d", got.SizeBytes)
		}
	}
}
