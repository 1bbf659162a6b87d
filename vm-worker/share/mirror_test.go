// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hostTable: /srv is a shared mount with mounts beneath it, /opt a private one.
const hostTable = `20 1 8:1 / / rw - ext4 /dev/sda1 rw
30 20 0:40 / /srv rw shared:5 - tmpfs t rw
31 30 0:41 / /srv/data/a rw shared:6 - tmpfs t rw
32 31 0:42 / /srv/data/a/deep rw shared:7 - tmpfs t rw
33 30 0:43 / /srv/data/with\040space rw master:9 - tmpfs t rw
34 30 0:44 / /srv/database rw shared:8 - tmpfs t rw
36 30 0:46 / /srv/data/p rw - tmpfs t rw
37 36 0:47 / /srv/data/p/hidden rw shared:4 - tmpfs t rw
40 20 0:50 / /opt rw - tmpfs t rw
41 40 0:51 / /opt/sub rw shared:2 - tmpfs t rw
`

func table(t *testing.T, text string) []mountEntry {
	t.Helper()
	entries, err := parseMountinfo(text)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestOnlyWhatTheKernelWouldPropagateAppears(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		f    Followed
		want string
	}{
		"nested":              {Followed{Source: "/srv/data", MountID: 30, Nested: true}, "a a/deep with space p"},
		"not nested":          {Followed{Source: "/srv/data", MountID: 30}, "a with space p"},
		"a private mount":     {Followed{Source: "/opt", MountID: 40, Nested: true}, ""},
		"nothing beneath":     {Followed{Source: "/srv/empty", MountID: 30, Nested: true}, ""},
		"the mount's own top": {Followed{Source: "/srv/data/a", MountID: 31, Nested: true}, "deep"},
		"over the source":     {Followed{Source: "/srv/data/a", MountID: 30, Nested: true}, ". deep"},
	} {
		found, err := c.f.onHost(table(t, hostTable))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var appear []string
		for _, m := range found {
			if m.appears {
				appear = append(appear, m.rel)
			}
		}
		if got := strings.Join(appear, " "); got != c.want {
			t.Errorf("%s: what appears is %q instead of %q", name, got, c.want)
		}
	}
	if _, err := (Followed{Source: "/srv", MountID: 99}).onHost(table(t, hostTable)); err == nil || !strings.Contains(err.Error(), "mount 99") {
		t.Errorf("a mount of another namespace gives %v", err)
	}
}

func TestTheVMsMountsBecomeThoseOfTheHost(t *testing.T) {
	t.Parallel()
	const base = "90 80 0:40 /data /share/k/m1 rw - tmpfs t rw\n"
	const (
		a     = "91 90 0:41 / /share/k/m1/a rw - x x rw\n"
		deep  = "92 91 0:42 / /share/k/m1/a/deep rw - x x rw\n"
		space = "93 90 0:43 / /share/k/m1/with\\040space rw - x x rw\n"
		p     = "94 90 0:46 / /share/k/m1/p rw - x x rw\n"
		old   = "95 90 0:49 / /share/k/m1/old rw - x x rw\n96 95 0:50 / /share/k/m1/old/er rw - x x rw\n"
		other = "97 90 0:99 / /share/k/m1/a rw - x x rw\n"
		over  = "98 90 0:99 / /share/k/m1 rw - x x rw\n"
	)
	for name, c := range map[string]struct{ vm, off, on string }{
		"fresh":          {base, "", "a a/deep with space p"},
		"up to date":     {base + a + deep + space + p, "", ""},
		"two too many":   {base + a + old + p, "old/er old", "a/deep with space"},
		"another":        {base + other + deep + space + p, "a/deep a", "a a/deep"},
		"over the place": {base + a + over, "a .", "a a/deep with space p"},
	} {
		f := Followed{Source: "/srv/data", MountID: 30, Nested: true, Place: "k/m1"}
		host, err := f.onHost(table(t, hostTable))
		if err != nil {
			t.Fatal(err)
		}
		vm, err := f.attached(table(t, c.vm))
		if err != nil {
			t.Fatal(err)
		}
		off, on := differences(host, vm)
		var places []string
		for _, m := range on {
			places = append(places, m.rel)
		}
		if got := strings.Join(off, " "); got != c.off {
			t.Errorf("%s: taken off is %q instead of %q", name, got, c.off)
		}
		if got := strings.Join(places, " "); got != c.on {
			t.Errorf("%s: put on is %q instead of %q", name, got, c.on)
		}
	}
	if _, err := (Followed{Place: "k/m2"}).attached(table(t, base)); err == nil {
		t.Error("a place with nothing attached is no error")
	}
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add(hostTable)
	f.Add("1 2 3 4 5 6 7\n")
	f.Add(`1 2 0:1 \1 /\04 rw \ - x`)
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := parseMountinfo(text)
		if err == nil && len(entries) != len(slices.Collect(strings.Lines(text))) {
			t.Errorf("%d entries of %q", len(entries), text)
		}
	})
}

// TestOnlyTheMountItselfIsCloned: between a look at the mount table and the clone,
// a guest can change directories on the way.
func TestOnlyTheMountItselfIsCloned(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it clones mounts")
	}
	dir := t.TempDir()
	if err := os.Symlink("/proc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/proc", 0, unix.STATX_MNT_ID, &st); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		point string
		id    uint64
		gone  bool
	}{
		"the mount":           {"/proc", st.Mnt_id, false},
		"another mount":       {"/proc", st.Mnt_id + 1, true},
		"by a link":           {filepath.Join(dir, "link"), st.Mnt_id, true},
		"beneath a link":      {filepath.Join(dir, "link", "sys"), st.Mnt_id, true},
		"not a mount's top":   {"/proc/sys", st.Mnt_id, true},
		"nothing of the name": {filepath.Join(dir, "none"), st.Mnt_id, true},
	} {
		fd, err := cloneMount(mirrored{mountEntry: mountEntry{id: c.id, point: c.point}})
		if err == nil {
			unix.Close(fd)
		}
		if errors.Is(err, errMountGone) != c.gone || err != nil && !c.gone {
			t.Errorf("%s gives %v", name, err)
		}
	}
}
