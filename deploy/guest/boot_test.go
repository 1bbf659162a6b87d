// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestGuestBootsByPVHWithDAX(t *testing.T) {
	t.Parallel()
	kernel := builtKernel(t)
	requireTools(t, "qemu-system-x86_64", "mke2fs", "debugfs", "secilc")
	dir := t.TempDir()
	buildImage(t, buildInit(t, dir), dir)

	got := boot(t, kernel, filepath.Join(dir, "image.ext4"), pmemRoot)

	if errs := got["error"]; len(errs) > 0 {
		t.Errorf("the guest reports: %s", strings.Join(errs, "; "))
	}
	if release := got.one("/proc/sys/kernel/osrelease"); !regexp.MustCompile(`^6\.1\.\d+-bulkhead$`).MatchString(release) {
		t.Errorf("uname -r is %q, want 6.1.N-bulkhead", release)
	}
	rootMounts := slices.DeleteFunc(slices.Clone(got["/proc/mounts"]), func(l string) bool { return !strings.HasPrefix(l, "/dev/root / ") })
	if len(rootMounts) != 1 {
		t.Fatalf("root mount not found in /proc/mounts: %q", got["/proc/mounts"])
	}
	options := strings.Split(strings.Fields(rootMounts[0])[3], ",")
	for _, want := range []string{"ro", "dax=always"} {
		if !slices.Contains(options, want) {
			t.Errorf("the root is mounted with %v, want %s among them", options, want)
		}
	}
	if w := got.one("write"); !strings.Contains(w, "read-only file system") {
		t.Errorf("writing to the root gave %q, want a read-only error", w)
	}

	var filesystems []string
	for _, line := range got["/proc/filesystems"] {
		fields := strings.Fields(line)
		filesystems = append(filesystems, fields[len(fields)-1])
	}
	requireAll(t, "file systems", filesystems, "9p", "bpf", "cgroup", "cgroup2", "devpts", "devtmpfs", "erofs", "ext4", "fuse",
		"hugetlbfs", "mqueue", "overlay", "proc", "securityfs", "sysfs", "tmpfs", "virtiofs", "xfs")
	requireAll(t, "cgroup v2 files", base(got["/sys/fs/cgroup/*"]), "cgroup.controllers", "cgroup.procs")
	var controllers []string
	for _, line := range got["/proc/cgroups"] {
		controllers = append(controllers, strings.Fields(line)[0])
	}
	requireAll(t, "cgroup controllers", controllers, "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb",
		"memory", "misc", "net_cls", "net_prio", "perf_event", "pids", "rdma")
	requireAll(t, "namespaces", base(got["/proc/self/ns/*"]), "cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
	requireAll(t, "devices", base(got["/dev/*"]), "console", "fuse", "full", "hwrng", "kmsg", "loop-control", "null", "pmem0",
		"ptmx", "random", "tty", "ttyS0", "urandom", "vsock", "zero")
	var protocols []string
	for _, line := range got["/proc/net/protocols"] {
		protocols = append(protocols, strings.Fields(line)[0])
	}
	requireAll(t, "socket families", protocols, "NETLINK", "PACKET", "TCP", "TCPv6", "UDP", "UNIX", "AF_VSOCK")
	if rng := got.one("/sys/class/misc/hw_random/rng_current"); !strings.HasPrefix(rng, "virtio_rng") {
		t.Errorf("the random generator is fed by %q, want virtio_rng", rng)
	}
	if got.one("/sys/bus/acpi/drivers/vmgenid/*:*") == "" {
		t.Error("no driver took the VM generation ID: clones of a template would share their random numbers")
	}
	// Not asserted: it is a measurement of this machine. README.md has the numbers and how they were taken.
	t.Logf("guest uptime at the init program: %s s, free memory %s of 128 MiB", got.one("uptime"), mib(got.one("freeram")))
}

func TestSameInputsGiveSameImage(t *testing.T) {
	t.Parallel()
	requireTools(t, "mke2fs", "debugfs", "secilc")
	first, second := t.TempDir(), t.TempDir()
	agent := buildInit(t, first)
	buildImage(t, agent, first)

	// The same content as another file: other times, other mode, other directory.
	data, err := os.ReadFile(agent)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(second, "copied")
	if err := os.WriteFile(copied, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(copied, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	buildImage(t, copied, second)

	for _, name := range []string{"image.ext4", "image.manifest"} {
		a, errA := os.ReadFile(filepath.Join(first, name))
		b, errB := os.ReadFile(filepath.Join(second, name))
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs between two builds from the same agent", name)
		}
		if name == "image.ext4" && len(a)%(2<<20) != 0 {
			t.Errorf("the image has %d bytes, not a multiple of 2 MiB", len(a))
		}
	}
}

// TestTheProgramsLieInWholeHugePages: build-image looks where the segments have come to lie.
func TestTheProgramsLieInWholeHugePages(t *testing.T) {
	t.Parallel()
	requireTools(t, "mke2fs", "debugfs", "readelf", "secilc")
	agent, init := filepath.Join("..", "..", "build", "bin", "bulkhead-agent"), filepath.Join("..", "..", "build", "bin", "bulkhead-init")
	for _, program := range []string{agent, init} {
		if _, err := os.Stat(program); err != nil {
			t.Skipf("needs the agent and its init, which are not built: run \"make build\": %v", err)
		}
	}
	other := buildInit(t, t.TempDir())
	for _, c := range []struct {
		agent, init, says string
	}{
		{agent, init, ""},
		{other, init, "of sbin/bulkhead-agent is not in whole huge pages"},
		{agent, other, "of sbin/container/bulkhead-agent is not in whole huge pages"},
	} {
		dir := t.TempDir()
		out, err := exec.Command("./build-image", c.agent, dir, c.init).CombinedOutput()
		said := strings.Count(string(out), "huge pages") > 0
		if err != nil || said != (c.says != "") || !strings.Contains(string(out), c.says) {
			t.Errorf("build-image %s DIR %s: %v, %q; want that it says %q", c.agent, c.init, err, out, c.says)
		}
		manifest, err := os.ReadFile(filepath.Join(dir, "image.manifest"))
		if err != nil || !strings.Contains(string(manifest), "\n/sbin/container/bulkhead-agent sha256:") {
			t.Errorf("the manifest does not have the init: %v, %q", err, manifest)
		}
	}
}

func TestBuildImageRefusesWhatCannotBePID1(t *testing.T) {
	t.Parallel()
	requireTools(t, "mke2fs", "debugfs", "readelf", "secilc")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, agent, says string }{
		{"dynamically linked", "/bin/true", "CGO_ENABLED=0"},
		{"not a program", script, "is not an ELF program"},
		{"missing", script + "-missing", "there is no agent binary"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			out, err := exec.Command("./build-image", c.agent, t.TempDir()).CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.says) {
				t.Errorf("build-image %s: %v, %q; want a failure that says %q", c.agent, err, out, c.says)
			}
		})
	}
}

// BenchmarkBoot compares root devices: ns/op is QEMU from start to power-off, guest-s the guest's uptime at its init program.
func BenchmarkBoot(b *testing.B) {
	kernel := builtKernel(b)
	requireTools(b, "qemu-system-x86_64", "mke2fs", "debugfs")
	dir := b.TempDir()
	buildImage(b, buildInit(b, dir), dir)
	for _, root := range []rootDevice{pmemRoot, blkRoot} {
		b.Run(root.name, func(b *testing.B) {
			var total float64
			runs := 0
			for b.Loop() {
				uptime, err := strconv.ParseFloat(boot(b, kernel, filepath.Join(dir, "image.ext4"), root).one("uptime"), 64)
				if err != nil {
					b.Fatal(err)
				}
				total += uptime
				runs++
			}
			b.ReportMetric(total/float64(runs), "guest-s")
		})
	}
}

// findings is what the init program in testdata reported: the lines of each file or pattern.
type findings map[string][]string

func (f findings) one(key string) string {
	if len(f[key]) == 0 {
		return ""
	}
	return f[key][0]
}

// A rootDevice is one way to give the guest its image: QEMU arguments for an image of a size, and the kernel's side of it.
type rootDevice struct {
	name    string
	kernel  string
	devices func(image, size string) []string
}

// pmemRoot is the recommendation of README.md; blkRoot is what it is compared with.
var (
	pmemRoot = rootDevice{"pmem-dax", "root=/dev/pmem0 rootfstype=ext4 rootflags=dax=always ro rootwait", func(image, size string) []string {
		return []string{
			"-object", "memory-backend-file,id=root,mem-path=" + image + ",size=" + size + ",share=on,readonly=on",
			"-device", "virtio-pmem-pci,memdev=root",
		}
	}}
	blkRoot = rootDevice{"blk", "root=/dev/vda rootfstype=ext4 ro rootwait", func(image, _ string) []string {
		return []string{
			"-drive", "id=root,if=none,format=raw,readonly=on,file=" + image,
			"-device", "virtio-blk-pci,drive=root",
		}
	}}
)

// kernelArguments are those of README.md, and a console, because a failing test shows it.
const kernelArguments = "panic=-1 quiet tsc=reliable no_timer_check memhp_default_state=online_kernel dummy.numdummies=0 console=ttyS0"

// boot runs the image's init program to its end and returns what it reported.
func boot(tb testing.TB, kernel, image string, root rootDevice) findings {
	tb.Helper()
	info, err := os.Stat(image)
	if err != nil {
		tb.Fatal(err)
	}
	reported := filepath.Join(filepath.Dir(image), "reported")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var console bytes.Buffer
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-machine", "q35,hpet=off,vmport=off,smbus=off,sata=off,i8042=off,smm=off,memory-backend=ram",
		"-accel", "tcg,tb-size=32", "-cpu", "max",
		"-m", "128M,slots=4,maxmem=2G", "-object", "memory-backend-memfd,id=ram,size=128M,share=on",
		"-kernel", kernel, "-append", root.kernel + " " + kernelArguments,
		"-device", "virtio-serial-pci", "-chardev", "file,id=report,path=" + reported,
		"-device", "virtserialport,chardev=report,name=org.bulkhead.boot-test",
		"-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto",
	}
	args = append(args, root.devices(image, strconv.FormatInt(info.Size(), 10))...)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := cmd.Run(); err != nil {
		tb.Fatalf("QEMU: %v; the guest's console says:\n%s", err, &console)
	}
	data, err := os.ReadFile(reported)
	if err != nil {
		tb.Fatal(err)
	}
	got := findings{}
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		key, value, _ := strings.Cut(line, "\t")
		got[key] = append(got[key], value)
	}
	if got.one("done") == "" {
		tb.Fatalf("the init program did not report to the end; the guest's console says:\n%s", &console)
	}
	return got
}

// builtKernel is the cached kernel of the current kernel.config; BULKHEAD_GUEST_KERNEL names another one to try.
func builtKernel(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv("BULKHEAD_GUEST_KERNEL"); path != "" {
		return path
	}
	out, err := exec.Command("./build-kernel", "--print-cached").Output()
	if err != nil {
		tb.Skip("the guest kernel is not built: run deploy/guest/build-kernel OUTDIR (about 6 minutes on 2 cores, then cached)")
	}
	return strings.TrimSpace(string(out))
}

func buildInit(tb testing.TB, dir string) string {
	tb.Helper()
	path := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./testdata/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("building the init program: %v\n%s", err, out)
	}
	return path
}

func buildImage(tb testing.TB, agent, dir string) {
	tb.Helper()
	if out, err := exec.Command("./build-image", agent, dir).CombinedOutput(); err != nil {
		tb.Fatalf("build-image: %v\n%s", err, out)
	}
}

func requireTools(tb testing.TB, tools ...string) {
	tb.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			tb.Skipf("%s is not installed, or not in PATH (/usr/sbin)", tool)
		}
	}
}

func requireAll(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s: the guest lacks %s; it has %v", what, w, got)
		}
	}
}

func base(paths []string) []string {
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = filepath.Base(p)
	}
	return names
}

func mib(bytes string) string {
	n, err := strconv.ParseInt(bytes, 10, 64)
	if err != nil {
		return bytes
	}
	return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) + " MiB"
}
