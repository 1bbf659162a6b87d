// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/agent/vmtest"
)

// mountsOfEveryKind mounts each file system that the guest's kernel has, with the
// options of the runtime-spec, and asks the container's own mount table.
func mountsOfEveryKind(t *testing.T, vm *vmtest.VM) {
	const key = "mounts"
	rootfs := filepath.Join(vm.Share, busyboxRootfs(t, vm, key))
	if err := os.MkdirAll(filepath.Join(rootfs, "target"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/target", filepath.Join(rootfs, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "etc/kept"), []byte("of the image\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	tmpfs := func(destination string, options ...string) specs.Mount {
		return specs.Mount{Destination: destination, Type: "tmpfs", Source: "tmpfs", Options: options}
	}
	const script = `busybox cat /proc/self/mountinfo
busybox stat -c '%a %u:%g %n' /sized; busybox df -k /sized | busybox awk 'END {print $2}'; busybox df -i /sized | busybox awk 'END {print $2}'
cat /etc/kept; busybox stat -c %a /etc/kept; echo more > /etc/new && ls /etc
touch /readonly/x 2>&1; ls -d /outer/inner`
	ct := create(t, vm, key, sh(script), withoutSeccomp, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts,
			tmpfs("/sized", "size=1m", "nr_inodes=16", "mode=0750", "uid=7", "gid=8", "nosuid", "nodev", "noexec", "noatime"),
			tmpfs("/etc", "tmpcopyup"),
			tmpfs("relative/../relative", "relatime"),
			tmpfs("/link/beneath"),
			tmpfs("/outer"), tmpfs("/outer/inner"), // in the given order, or the second is hidden
			tmpfs("/readonly", "rro", "rnosuid", "rnoexec"),
			tmpfs("/shared", "shared"), tmpfs("/unbindable", "runbindable"), tmpfs("/slave", "rslave"),
			specs.Mount{Destination: "/ramfs", Type: "ramfs", Source: "ramfs"},
			specs.Mount{Destination: "/huge", Type: "hugetlbfs", Source: "none"},
			specs.Mount{Destination: "/bpf", Type: "bpf", Source: "bpf"},
			specs.Mount{Destination: "/security", Type: "securityfs", Source: "none"},
			specs.Mount{Destination: "/binfmt", Type: "binfmt_misc", Source: "none"},
			specs.Mount{Destination: "/unified", Type: "cgroup2", Source: "cgroup2", Options: []string{"rw", "nosuid"}},
			specs.Mount{Destination: "/queues", Type: "mqueue", Source: "mqueue"},
			specs.Mount{Destination: "/terminals", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "gid=5"}},
			specs.Mount{Destination: "/system", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
		)
	})
	ct.start(t)
	exit(t, ct.Relay)
	// destination: type, options of the mount that must be there, words of the rest of the line
	for destination, want := range map[string][]string{
		"/sized":          {"tmpfs", "rw,nosuid,nodev,noexec,noatime", "size=1024k", "nr_inodes=16"},
		"/relative":       {"tmpfs", "rw,relatime"},
		"/target/beneath": {"tmpfs", "rw"},
		"/outer/inner":    {"tmpfs", "rw"},
		"/readonly":       {"tmpfs", "ro,nosuid,noexec"},
		"/shared":         {"tmpfs", "rw", "shared:"},
		"/unbindable":     {"tmpfs", "rw", "unbindable"},
		"/ramfs":          {"ramfs", "rw"},
		"/huge":           {"hugetlbfs", "rw"},
		"/bpf":            {"bpf", "rw"},
		"/security":       {"securityfs", "rw"},
		"/binfmt":         {"binfmt_misc", "rw"},
		"/unified":        {"cgroup2", "rw,nosuid"},
		"/sys/fs/cgroup":  {"cgroup2", "ro,nosuid,nodev,noexec"},
		"/queues":         {"mqueue", "rw"},
		"/terminals":      {"devpts", "rw", "gid=5"},
		"/system":         {"sysfs", "ro"},
	} {
		line := mountLine(ct.Output(), destination)
		_, kind, _ := strings.Cut(line, " - ")
		fields := strings.Fields(line)
		if len(fields) < 7 || !strings.HasPrefix(kind, want[0]+" ") || !strings.HasPrefix(fields[5], want[1]) {
			t.Errorf("at %s is %q; want %v", destination, line, want)
		}
		for _, word := range want[2:] {
			if !strings.Contains(line, word) {
				t.Errorf("at %s is %q without %q", destination, line, word)
			}
		}
	}
	const want = "750 7:8 /sized\n1024\n16\nof the image\n640\nkept\nnew\ntouch: /readonly/x: Read-only file system\n/outer/inner\n"
	if !strings.HasSuffix(ct.Output(), want) {
		t.Errorf("the container says %q and %q, which does not end with %q", ct.Output(), ct.ErrOutput(), want)
	}
	if _, err := os.Stat(filepath.Join(rootfs, "etc/new")); err == nil {
		t.Error("a file of the tmpfs is on the root file system")
	}
	ct.delete(t)
}

// mountLine is the last line of a mount table for a destination.
func mountLine(table, destination string) (found string) {
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 6 && f[4] == destination {
			found = line
		}
	}
	return found
}

func rootPropagation(t *testing.T, vm *vmtest.VM) {
	for propagation, want := range map[string]string{"rshared": "shared:", "rslave": "", "unbindable": "unbindable", "private": ""} {
		ct := create(t, vm, "propagation", process("cat", "/proc/self/mountinfo"), func(s *specs.Spec) { s.Linux.RootfsPropagation = propagation })
		ct.start(t)
		exit(t, ct.Relay)
		fields, _, _ := strings.Cut(mountLine(ct.Output(), "/"), " - ")
		tags := strings.Join(strings.Fields(fields)[6:], " ")
		if want == "" && tags != "" || !strings.HasPrefix(tags, want) {
			t.Errorf("with %s the root is %q", propagation, tags)
		}
		ct.delete(t)
	}
}
