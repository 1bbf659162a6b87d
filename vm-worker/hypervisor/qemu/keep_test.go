// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKeptMountsAreAnotherVMs: what a VM that was killed had of the host's files, with what is mounted beneath and what
// was permitted, another VM has; and when nobody keeps it, nobody has it.
func TestKeptMountsAreAnotherVMs(t *testing.T) {
	t.Parallel()
	src := filepath.Join(t.TempDir(), "src")
	mountTmpfs(t, src, "base", unix.MS_PRIVATE)
	mountTmpfs(t, src+"/sub", "beneath", unix.MS_PRIVATE)
	if err := os.WriteFile(src+"/single", []byte("one file"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := startVM(t, newSpec(t))
	kept, err := first.KeepMounts()
	if err != nil {
		t.Fatal(err)
	}
	mounts := []struct {
		place, from   string
		dir, readOnly bool
	}{{"k/rootfs", src, true, false}, {"k/m0", src, true, true}, {"k/m1", src + "/single", false, false}}
	for _, m := range mounts {
		tree := openTree(t, m.from)
		defer tree.Close()
		if err := first.AttachMount(t.Context(), tree, m.place, m.dir, m.readOnly); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(first.Record().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-first.Done()
	if _, err := first.KeepMounts(); err == nil {
		t.Error("the mounts of a VM that has ended can be kept")
	}

	second := startVM(t, newSpec(t))
	c := connect(t, second)
	c.ready()
	for _, m := range mounts {
		again, err := kept.Again(t.Context(), m.place)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if err := second.AttachMount(t.Context(), again, m.place, m.dir, m.readOnly); err != nil {
			t.Fatal(err)
		}
	}
	for _, place := range []string{"k/none", "k", "../k"} {
		if f, err := kept.Again(t.Context(), place); err == nil {
			f.Close()
			t.Errorf("something was attached at %q", place)
		}
	}
	if err := kept.Close(); err != nil {
		t.Error(err)
	}
	const share = "/run/share/k/"
	for _, q := range []struct{ ask, want string }{
		{"read " + share + "rootfs/sub/beneath", "from beneath"},
		{"read " + share + "m0/base", "from base"},
		{"read " + share + "m1", "one file"},
		{"write " + share + "rootfs/sub/new text", "ok"},
		{"write " + share + "m0/sub/new text", "read-only file system"},
	} {
		if got := c.ask(q.ask); !strings.HasSuffix(got, q.want) {
			t.Errorf("the guest's %q gives %q, want %q", q.ask, got, q.want)
		}
	}
	if got := readFile(t, src+"/sub/new"); got != "text" {
		t.Errorf("the host sees %q", got)
	}
	killVM(t, second)
	for _, dir := range []string{src + "/sub", src} { // nobody holds them any more
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	}
}
