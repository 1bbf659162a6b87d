// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/share"

	"golang.org/x/sys/unix"
)

func openTree(t *testing.T, path string) *os.File {
	t.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), path)
}

func TestAttachedMountsAreSeenByTheGuestAlone(t *testing.T) {
	t.Parallel()
	spec := newSpec(t)
	src := t.TempDir()
	for name, text := range map[string]string{"data": "from the host", "single": "one file"} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v := startVM(t, spec)
	c := connect(t, v)
	c.ready()

	rw, ro, single := openTree(t, src), openTree(t, src), openTree(t, src+"/single")
	for _, m := range []struct {
		mount    *os.File
		place    string
		dir      bool
		readOnly bool
	}{{rw, "k/rootfs", true, false}, {ro, "k/m0", true, true}, {single, "k/m1", false, false}} {
		if err := v.AttachMount(t.Context(), m.mount, m.place, m.dir, m.readOnly); err != nil {
			t.Fatal(err)
		}
		m.mount.Close()
	}
	for _, trace := range []string{"/share/k/", src, spec.Dir} {
		if strings.Contains(readFile(t, "/proc/self/mountinfo"), trace) {
			t.Errorf("the host's mount table shows %s", trace)
		}
	}

	const guestShare = "/run/share/k"
	for _, q := range []struct{ ask, want string }{
		{"list /run/share", "k"},
		{"list " + guestShare, "m0 m1 rootfs"},
		{"read " + guestShare + "/rootfs/data", "from the host"},
		{"read " + guestShare + "/m0/data", "from the host"},
		{"read " + guestShare + "/m1", "one file"},
		{"write " + guestShare + "/rootfs/new text", "ok"},
		{"write " + guestShare + "/m1 changed", "ok"},
		{"chown " + guestShare + "/rootfs/new", "ok"},
		{"chmod " + guestShare + "/rootfs/new", "ok"},
		{"mkdir " + guestShare + "/rootfs/dir", "ok"},
		{"symlink /etc/passwd " + guestShare + "/rootfs/link", "ok"},
		{"setxattr " + guestShare + "/rootfs/new user.test value", "ok"},
		{"write " + guestShare + "/m0/new text", "read-only file system"},
		{"mkdir /run/share/intruder", "read-only file system"},
		{"symlink / " + guestShare + "/m2", "read-only file system"},
	} {
		if got := c.ask(q.ask); !strings.HasSuffix(got, q.want) {
			t.Errorf("the guest's %q gives %q, want %q", q.ask, got, q.want)
		}
	}
	if got := readFile(t, src+"/new"); got != "text" {
		t.Errorf("the host sees %q", got)
	}
	if got := readFile(t, src+"/single"); got != "changed" {
		t.Errorf("the host sees %q in the single file", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(src+"/new", &st); err != nil || st.Uid != 1234 || st.Mode&0o7777 != 0o4751 {
		t.Errorf("the guest's file is of user %d with mode %o, %v; want 1234, 4751", st.Uid, st.Mode, err)
	}
	// A node the guest makes is of no use to a QEMU that was taken over.
	mounts := readFile(t, fmt.Sprintf("/proc/%d/mountinfo", v.Record().PID))
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], "/share/k/") && !strings.Contains(f[5], "nosuid,nodev,noexec") {
			t.Errorf("an attached mount lacks nosuid, nodev or noexec: %s", line)
		}
	}

	second := openTree(t, src)
	defer second.Close()
	if err := v.AttachMount(t.Context(), second, "k/rootfs", true, false); !errors.Is(err, share.ErrAttached) {
		t.Errorf("attaching twice at a place gives %v", err)
	}
	if err := v.DetachMounts(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if err := v.DetachMounts(t.Context(), "k"); err != nil {
		t.Errorf("detaching twice: %v", err)
	}
	if got := c.ask("list /run/share"); got != "" {
		t.Errorf("after the detach the share has %q", got)
	}
	if _, err := os.Stat(src + "/data"); err != nil {
		t.Errorf("the detach touched the host's files: %v", err)
	}
	if err := v.AttachMount(t.Context(), second, "k/rootfs", true, false); err != nil {
		t.Errorf("attaching again after the detach: %v", err)
	}
}

// mountTmpfs mounts a tmpfs with one file, with the propagation, until the test ends.
func mountTmpfs(t *testing.T, dir, file string, propagation uintptr) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", propagation, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte("from "+file), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLaterMountsOfTheHostAppear(t *testing.T) {
	t.Parallel()
	v := startVM(t, newSpec(t))
	c := connect(t, v)
	c.ready()
	src := filepath.Join(t.TempDir(), "src")
	mountTmpfs(t, src, "base", unix.MS_SHARED)
	mountTmpfs(t, src+"/early", "one", unix.MS_SHARED)
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, src, 0, unix.STATX_MNT_ID, &st); err != nil {
		t.Fatal(err)
	}
	follow := func(place string, readOnly bool) func() {
		tree := openTree(t, src)
		defer tree.Close()
		private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &private); err != nil {
			t.Fatal(err)
		}
		if err := v.AttachMount(t.Context(), tree, place, true, readOnly); err != nil {
			t.Fatal(err)
		}
		f := hypervisor.Followed{Source: src, MountID: st.Mnt_id, Nested: true, Place: place, ReadOnly: readOnly}
		return func() {
			t.Helper()
			if err := v.MirrorMounts(t.Context(), f); err != nil {
				t.Error(err)
			}
		}
	}
	writable, protected := follow("k/m0", false), follow("k/m1", true)
	mirror := func() { t.Helper(); writable(); protected() }
	expect := func(ask, want string) {
		t.Helper()
		if got := c.ask(ask); !strings.HasSuffix(got, want) {
			t.Errorf("the guest's %q gives %q, want %q", ask, got, want)
		}
	}
	const share = "/run/share/k/"
	mirror() // what was cloned is not attached once more
	expect("list "+share+"m0/early", "one")

	mountTmpfs(t, src+"/late", "two", unix.MS_SHARED)
	mountTmpfs(t, src+"/late/deep", "three", unix.MS_SHARED)
	mountTmpfs(t, src+"/early", "over", unix.MS_PRIVATE)
	mirror()
	expect("read "+share+"m0/late/two", "from two")
	expect("read "+share+"m0/late/deep/three", "from three")
	expect("list "+share+"m0/early", "over")
	expect("write "+share+"m0/late/back text", "ok")
	expect("write "+share+"m1/late/back text", "read-only file system")
	if got := readFile(t, src+"/late/back"); got != "text" {
		t.Errorf("the host sees %q", got)
	}
	table := readFile(t, fmt.Sprintf("/proc/%d/mountinfo", v.Record().PID))
	if n := strings.Count(table, " /share/k/"); n != 2*5 {
		t.Errorf("%d mounts are attached instead of 10:\n%s", n, table)
	}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if strings.HasPrefix(f[4], "/share/k/") && (!strings.Contains(f[5], "nosuid,nodev,noexec") || f[6] != "-") {
			t.Errorf("an attached mount lacks nosuid, nodev or noexec, or is not private: %s", line)
		}
	}

	// The guest keeps no mount of the host busy.
	for _, dir := range []string{"/late/deep", "/late", "/early"} {
		if err := unix.Unmount(src+dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	}
	mirror()
	expect("list "+share+"m0/late", "")
	expect("list "+share+"m0/early", "one")

	if err := v.DetachMounts(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	if got := readFile(t, fmt.Sprintf("/proc/%d/mountinfo", v.Record().PID)); strings.Contains(got, " /share/k/") {
		t.Errorf("after the detach the VM still has\n%s", got)
	}
}

// TestGuestMakesSpecialFiles holds for pipes, sockets and nodes alike: QEMU makes
// them by the same path. Releases from the fix of CVE-2023-2861 to 9.2 refuse
// them all but for the library in preload/.
func TestGuestMakesSpecialFiles(t *testing.T) {
	t.Parallel()
	v := startVMWith(t, Options{Preload: buildPreload(t)}, newSpec(t))
	c := connect(t, v)
	c.ready()
	shared := t.TempDir()
	tree := openTree(t, shared)
	defer tree.Close()
	if err := v.AttachMount(t.Context(), tree, "k", true, false); err != nil {
		t.Fatal(err)
	}
	if got := c.ask("mkfifo /run/share/k/pipe"); got != "ok" {
		t.Fatalf("making a pipe gives %q", got)
	}
	info, err := os.Lstat(filepath.Join(shared, "pipe"))
	if err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Fatalf("on the host it is %v, %v", info, err)
	}
}

// buildPreload compiles the library as the Makefile does.
func buildPreload(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), Preload)
	out, err := exec.Command("gcc", "-Wall", "-Werror", "-O2", "-fPIC", "-shared", "-o", path, "preload/growth.c", "preload/special_files.c", "preload/sealed_memory.c").CombinedOutput()
	if err != nil {
		t.Fatalf("compiling %s: %v\n%s", Preload, err, out)
	}
	return path
}
