// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/agent/vmtest"
)

var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// process is what an engine asks for when a person gives a command.
func process(args ...string) *specs.Process {
	return &specs.Process{
		Args: args, Cwd: "/", Env: []string{"PATH=/bin:/sbin:/usr/bin", "HOME=/root"},
		Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps},
	}
}

// dockerSpec is the configuration that Docker writes on a host with cgroup v1.
func dockerSpec(t testing.TB, p *specs.Process) *specs.Spec {
	t.Helper()
	var seccomp specs.LinuxSeccomp
	seccompProfile, err := os.ReadFile("../rehearsal/seccomp.json") // of the shape and the size of Docker's
	if err != nil {
		t.Fatal(err)
	}
	if err = json.Unmarshal(seccompProfile, &seccomp); err != nil {
		t.Fatal(err)
	}
	return &specs.Spec{
		Version: "1.0.2-dev", Process: p, Root: &specs.Root{Path: "/var/lib/docker/overlay2/x/merged"}, Hostname: "c0ffee",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		},
		Hooks: &specs.Hooks{Prestart: []specs.Hook{{Path: "/proc/1/exe"}}}, // Docker before 28
		Linux: &specs.Linux{
			CgroupsPath: "/docker/c0ffee",
			Namespaces: []specs.LinuxNamespace{
				{Type: "mount"}, {Type: "network", Path: "/proc/1/ns/net"}, {Type: "uts"}, {Type: "pid"}, {Type: "ipc"},
			},
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				Memory:  &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{Shares: new(uint64)}, BlockIO: &specs.LinuxBlockIO{Weight: new(uint16)},
			},
			Sysctl:        map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
			Seccomp:       &seccomp,
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// withoutSeccomp is the configuration of engines that set no filter.
func withoutSeccomp(s *specs.Spec) { s.Linux.Seccomp = nil }

// busyboxRootfs puts a root file system for the container into the share.
func busyboxRootfs(t testing.TB, vm *vmtest.VM, key string) string {
	t.Helper()
	makeRootfs(t, filepath.Join(vm.Share, key, "rootfs"))
	return key + "/rootfs"
}

// makeRootfs makes a root file system, if it is not there yet.
func makeRootfs(t testing.TB, dir string) {
	t.Helper()
	const busybox = "/bin/busybox"
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(busybox)
	if err != nil {
		t.Skipf("needs a static busybox: apt-get install busybox-static: %v", err)
	}
	defer src.Close()
	dst, err := os.OpenFile(filepath.Join(dir, "bin/busybox"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if os.IsExist(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "true", "false", "sleep", "cat", "echo", "id", "ls", "stty", "tty", "kill", "ps", "head", "dd", "touch", "grep", "hostname", "nproc", "mount", "wc", "seq", "tail", "find", "sed", "tr", "cut"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
}
