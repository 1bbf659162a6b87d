// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/runtime-frontend/bundle"
)

func TestOwnersAreMappedOnTheHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes id-mapped mounts")
	}
	shifted := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	idMap := &bundle.IDMap{UIDs: shifted, GIDs: shifted}
	tmpfs := t.TempDir()
	if err := unix.Mount("tmpfs", tmpfs, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(tmpfs, 0)
	for name, dir := range map[string]string{"tmpfs": tmpfs, "the file system of " + os.TempDir(): t.TempDir()} {
		if err := os.WriteFile(filepath.Join(dir, "old"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := tree{source: dir, destination: "/data", recursive: true, isDir: true, idMap: idMap}.open()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer f.Close()
		fd := int(f.Fd())
		owner := func(at int, path string) [2]uint32 {
			t.Helper()
			var st unix.Stat_t
			if err := unix.Fstatat(at, path, &st, 0); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			return [2]uint32{st.Uid, st.Gid}
		}
		if got := owner(fd, "old"); got != [2]uint32{100000, 100000} {
			t.Errorf("%s: root's file is shown as %v", name, got)
		}
		// As the file server makes a file: as root first, then its owner's.
		if err := unix.Mknodat(fd, "new", unix.S_IFREG|0o600, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := unix.Fchownat(fd, "new", 100005, 100006, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := owner(unix.AT_FDCWD, filepath.Join(dir, "new")); got != [2]uint32{5, 6} {
			t.Errorf("%s: on disk the file is of %v", name, got)
		}
	}
	_, err := tree{source: "/proc", destination: "/data", isDir: true, idMap: idMap}.open()
	if err == nil || !strings.Contains(err.Error(), `"/proc" for /data`) || !strings.Contains(err.Error(), "no id-mapped mounts") {
		t.Errorf("a file system that cannot gives %v", err)
	}
}
