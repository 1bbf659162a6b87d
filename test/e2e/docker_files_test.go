// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestABindMountIsTheHostsDirectory(t *testing.T) {
	d := newDocker(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "before"), "there before\n")
	name := d.launch(opts("-v", dir+":/data"), "sleep", "1000")

	expect(t, "a file of before", d.do("exec", name, "cat", "/data/before"), "there before")
	d.do("exec", name, "sh", "-c", "mkdir /data/sub; echo from inside > /data/sub/file; chmod 600 /data/sub/file; chown 1000:2000 /data/sub/file")
	expect(t, "a file written inside", read(t, filepath.Join(dir, "sub", "file")), "from inside\n")
	if info, err := os.Stat(filepath.Join(dir, "sub", "file")); err != nil || info.Mode() != 0o600 {
		t.Errorf("its mode: %v %v", info, err)
	}
	write(t, filepath.Join(dir, "after"), "made later\n")
	expect(t, "a file made later", d.do("exec", name, "cat", "/data/after"), "made later")
	write(t, filepath.Join(dir, "before"), "there before, and rewritten\n")
	expect(t, "a file rewritten in place", d.do("exec", name, "cat", "/data/before"), "there before, and rewritten")
	if err := os.Rename(filepath.Join(dir, "after"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	expect(t, "the listing after a rename", d.do("exec", name, "ls", "/data"), "before\nmoved\nsub")
	d.do("exec", name, "sh", "-c", "rm /data/moved; ln -s before /data/link")
	if err := gone(filepath.Join(dir, "moved")); err != nil {
		t.Error(err)
	}
	expect(t, "the listing on the host", names(t, dir), "before link sub")
}

func TestAReadOnlyBindMountRefusesWrites(t *testing.T) {
	d := newDocker(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "kept\n")
	r := d.tryRun(opts("-v", dir+":/data:ro"), "sh", "-c", "cat /data/file; for f in new file; do (echo changed > /data/$f) 2>&1; done; rm /data/file 2>&1")
	expect(t, "the number of refusals", strings.Count(r.Stdout, "Read-only file system"), 3)
	expect(t, "the file", read(t, filepath.Join(dir, "file")), "kept\n")
	// Not even root of the container takes the protection away.
	d.tryRun(opts("--privileged", "-v", dir+":/data:ro"), "sh", "-c", "mount -o remount,rw /data; echo changed > /data/file")
	if !reference() {
		expect(t, "the file, after a privileged container remounted it", read(t, filepath.Join(dir, "file")), "kept\n")
	}
}

func TestASingleFileCanBeBound(t *testing.T) {
	d := newDocker(t)
	dir := t.TempDir()
	file, protected := filepath.Join(dir, "settings"), filepath.Join(dir, "secret")
	write(t, file, "one\n")
	write(t, protected, "secret\n")
	name := d.launch(opts("-v", file+":/etc/settings", "-v", protected+":/run/deep/secret:ro"), "sleep", "1000")
	expect(t, "the files", d.do("exec", name, "cat", "/etc/settings", "/run/deep/secret"), "one\nsecret")
	d.do("exec", name, "sh", "-c", "echo two > /etc/settings")
	expect(t, "the file on the host", read(t, file), "two\n")
	write(t, file, "three, rewritten by the host\n")
	expect(t, "the file inside", d.do("exec", name, "cat", "/etc/settings"), "three, rewritten by the host")
	if r := d.try("exec", name, "sh", "-c", "echo no > /run/deep/secret"); r.Code == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
		t.Errorf("writing a read-only file: code %d, %q", r.Code, r.Stderr)
	}
}

func TestAVolumeOutlivesItsContainer(t *testing.T) {
	d := newDocker(t)
	volume := newID("volume")
	t.Cleanup(func() { _, _ = d.engine.Docker(t.Context(), nil, "volume", "rm", "-f", volume) })
	d.run(opts("-v", volume+":/keep"), "sh", "-c", "echo kept > /keep/file; sync")
	expect(t, "the file", d.run(opts("-v", volume+":/keep"), "cat", "/keep/file"), "kept")
	d.do("volume", "rm", volume)
}

func TestTheRootFileSystemBehavesLikeOne(t *testing.T) {
	d := newDocker(t)
	const script = `set -e
cd /var/tmp
echo text > file; ln file hard; ln -s file soft; mkdir -p a/b
chown 1000:2000 file; chmod 4755 file; touch -d '2001-02-03 04:05:06' file
stat -c '%a %u:%g %h %Y' file
cat soft
dd if=/dev/zero of=hole bs=1 count=1 seek=1048575 2>/dev/null; stat -c %s hole
mv file a/b/moved; cat a/b/moved
echo more >> a/b/moved; cat hard
rm -r a hard soft hole; ls
exec 3> open; rm open; echo still >&3; echo works`
	got := d.run(opts("-e", "TZ=UTC"), "sh", "-c", script)
	expect(t, "the output", got, "4755 1000:2000 2 981173106\ntext\n1048576\ntext\ntext\nmore\nworks")
}

func TestSpecialFilesCanBeMade(t *testing.T) {
	d := newDocker(t)
	for _, c := range []struct {
		name, dir string
		options   []string
	}{
		{"in the root file system", "/var/tmp", nil},
		{"in a tmpfs", "/scratch", opts("--tmpfs", "/scratch")},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := dockerUser{t, d.engine}.run(c.options, "sh", "-c",
				"cd "+c.dir+"; mkfifo fifo && (echo through > fifo &) && cat fifo; mknod null c 1 3 && stat -c %F null")
			expect(t, "the output", got, "through\ncharacter special file")
		})
	}
}

func TestManySmallFilesSurvive(t *testing.T) {
	d := newDocker(t)
	dir := t.TempDir()
	const count = 300
	d.run(opts("-v", dir+":/data"), "sh", "-c", fmt.Sprintf("for i in $(seq %d); do echo $i > /data/$i; done", count))
	for i := 1; i <= count; i++ {
		if got := read(t, filepath.Join(dir, fmt.Sprint(i))); got != fmt.Sprintln(i) {
			t.Fatalf("file %d holds %q", i, got)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}
