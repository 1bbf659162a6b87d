// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead/test/e2e/engine"
)

// shortOfADisk is what files of the host do not do in a VM; docs/limits.md says
// why. Everything else that the probe looks at behaves as on a local disk.
var shortOfADisk = map[string]string{
	"fallocate":               "operation not supported",
	"fallocate-keep-size":     "operation not supported",
	"punch-hole":              "operation not supported",
	"unlinked-shrinks":        "no such file or directory",
	"unlinked-attributes":     "no such file or directory",
	"unlinked-reopen":         "no such file or directory",
	"nameless-file":           "operation not supported",
	"nameless-file-gets-name": "operation not supported",
	"rename-noreplace":        "invalid argument",
	"rename-exchange":         "invalid argument",
	"file-handle":             "operation not supported",
	"trusted-attributes":      "operation not supported",
	"file-capabilities":       "operation not supported",
	"access-control-list":     "Permission denied",
	"lease":                   "invalid argument",
}

func TestFilesBehaveAsOnALocalDisk(t *testing.T) {
	d := newDocker(t)
	dir := filepath.Join(ground.Data, newID("files")) // on a disk: a tmpfs, as /tmp may be, can do less
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	probe := filepath.Join(dir, "fileprobe")
	build := exec.CommandContext(within(t, launchTime), "go", "build", "-buildvcs=false", "-o", probe, "./fileprobe")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the probe: %v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	// The root file system comes the same way; the reference's is an overlayfs, with limits of its own.
	out := d.run(opts("-v", dir+":/probe", "--cap-add", "SYS_ADMIN", "--cap-add", "LEASE"), "/probe/fileprobe", "/probe/data")
	told := 0
	for line := range strings.Lines(out + "\n") {
		name, outcome, _ := strings.Cut(strings.TrimSpace(line), ": ")
		told++
		switch want := shortOfADisk[name]; {
		case want == "" || reference():
			expect(t, name, outcome, "ok")
		case !strings.Contains(outcome, want):
			t.Errorf("%s: %s; docs/limits.md says %q", name, outcome, want)
		}
	}
	if told < 60 {
		t.Errorf("the probe tells only %d lines:\n%s", told, out)
	}
}

// sharedTmpfs mounts a tmpfs with one file, which propagates, until the test ends.
func sharedTmpfs(t *testing.T, dir, file string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, file), "from "+file+"\n")
}

func TestVolumesOfTheHostAppearLater(t *testing.T) {
	d := newDocker(t)
	src := filepath.Join(t.TempDir(), "src")
	sharedTmpfs(t, src, "base")
	name := d.launch(opts("-v", src+":/data:rslave", "-v", src+":/kept:ro,rslave", "-v", src+":/apart"), "sleep", "1000")
	sharedTmpfs(t, filepath.Join(src, "late"), "two")
	sees := func(path, want string) {
		t.Helper()
		must(t, commandTime, func() error { return is(d.try("exec", name, "cat", path).Stdout, want) })
	}
	sees("/data/late/two", "from two\n")
	sharedTmpfs(t, filepath.Join(src, "late", "deep"), "three")
	sees("/data/late/deep/three", "from three\n")
	sees("/kept/late/deep/three", "from three\n")
	if r := d.try("exec", name, "sh", "-c", "ls /apart/late; echo no > /kept/late/new"); (r.Code == 0 && !reference()) || r.Stdout != "" {
		t.Errorf("a private and a read-only bind: code %d, %q", r.Code, r.Stdout)
	}
	d.do("exec", name, "sh", "-c", "echo back > /data/late/back; sleep 1000 < /data/late/deep/three &")
	expect(t, "a file written inside", read(t, filepath.Join(src, "late", "back")), "back\n")
	for _, dir := range []string{"late/deep", "late"} { // although the container has a file open
		if err := unix.Unmount(filepath.Join(src, dir), 0); err != nil && !reference() {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	}
	if !reference() {
		must(t, commandTime, func() error { return is(d.try("exec", name, "ls", "/data/late").Stdout, "") })
	}

	if !reference() {
		r := d.tryRun(opts("-v", src+":/data:rshared"), "true")
		if r.Code == 0 {
			t.Error("rshared was accepted")
		}
		sentence(t, r.Stderr, "rshared", "cannot appear on the host", "rslave")
	}
}

func TestMountsOfEveryDay(t *testing.T) {
	d := newDocker(t)
	volume := newID("volume")
	t.Cleanup(func() { _, _ = d.engine.Docker(t.Context(), nil, "volume", "rm", "-f", volume) })
	dir := t.TempDir()
	write(t, filepath.Join(dir, "passwd"), "only:x:0:0::/:/bin/sh\n")
	name := d.launch(opts(
		"--read-only", "--tmpfs", "/run", "--mount", "type=tmpfs,destination=/scratch,tmpfs-size=2m,tmpfs-mode=1770",
		"--shm-size", "8m", "-v", volume+":/vol", "-v", filepath.Join(dir, "passwd")+":/etc/passwd",
		"-v", dir+":/vol/nested", "-v", dir+":/outer", "-v", volume+":/outer/inner",
	), "sleep", "1000")
	const script = `touch /etc/x 2>&1; touch /run/x /scratch/x /vol/x /dev/shm/x && echo written
df -k /scratch /dev/shm | awk '{print $2, $6}'; stat -c %a /scratch
cat /etc/passwd; ls /vol/nested /outer/inner
echo o > /dev/null; test -c /dev/ptmx -a -d /dev/mqueue -a -h /dev/stdout && echo devices
touch /proc/sys/kernel/hostname /proc/kcore 2>&1 | head -n 1; wc -c < /proc/timer_list; mount | grep -c ' /proc/'`
	const want = `touch: /etc/x: Read-only file system
written
1K-blocks Mounted
2048 /scratch
8192 /dev/shm
1770
only:x:0:0::/:/bin/sh
/outer/inner:
nested
x

/vol/nested:
inner
passwd
devices`
	got := d.do("exec", name, "sh", "-c", script)
	if !strings.HasPrefix(got, want+"\n") {
		t.Errorf("inside it is\n%s\ninstead of\n%s", got, want)
	}
	rest := strings.Split(strings.TrimPrefix(got, want+"\n"), "\n")
	if !strings.Contains(rest[0], "Read-only file system") || len(rest) < 3 || rest[1] != "0" || rest[2] == "0" {
		t.Errorf("of masked and read-only paths is said %q", rest)
	}

	// The engine rewrites these in place while the container runs.
	for _, file := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		field := map[string]string{"/etc/resolv.conf": ".ResolvConfPath", "/etc/hosts": ".HostsPath"}[file]
		d.do("exec", name, "cat", file)
		write(t, d.inspect(name, field), "127.0.0.1 rewritten\n")
		expect(t, file, d.do("exec", name, "cat", file), "127.0.0.1 rewritten")
	}
	// Not the container above: Docker cannot take volumes from one that has a tmpfs of --mount.
	holder := newID("holder")
	t.Cleanup(func() { d.remove(holder) })
	d.do("create", "--name", holder, "-v", volume+":/vol", engine.Image)
	expect(t, "the volume, seen by another", d.run(opts("--volumes-from", holder), "ls", "/vol"), "nested\nx")
}
