// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPodmanUserNamespaces(t *testing.T) {
	p := newPodman(t)
	volume := t.TempDir()
	if err := os.Chown(volume, 100000, 100000); err != nil {
		t.Fatal(err)
	}
	one := p.launch(opts("--uidmap", "0:100000:5000", "--gidmap", "0:200000:5000", "--ipc", "shareable", "--volume", volume+":/mnt"), "sleep", "1000")
	const look = `cat /proc/self/uid_map /proc/self/gid_map; stat -c %u:%g /etc/passwd`
	expect(t, "what it sees", strings.Join(strings.Fields(p.do("exec", one, "sh", "-c", look+"; touch /mnt/made")), " "), "0 100000 5000 0 200000 5000 0:0")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(volume, "made"), &st); err != nil || st.Uid != 100000 || st.Gid != 200000 {
		t.Errorf("its file belongs on the host to %d:%d, %v", st.Uid, st.Gid, err)
	}
	from := "container:" + one
	got := strings.Fields(p.do(p.runArgs(opts("--rm", "--userns", from, "--ipc", from), "sh", "-c", look+"; readlink /proc/self/ns/user; readlink /proc/self/ns/ipc")...))
	want := strings.Fields(p.do("exec", one, "sh", "-c", look+"; readlink /proc/self/ns/user; readlink /proc/self/ns/ipc"))
	expect(t, "what another container in its namespaces sees", strings.Join(got, " "), strings.Join(want, " "))
}
