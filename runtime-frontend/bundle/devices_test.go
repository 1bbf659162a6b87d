// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// foreignDevice is a character device that this host has and a guest has not.
func foreignDevice(t *testing.T) number {
	t.Helper()
	entries, err := os.ReadDir("/sys/dev/char")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var n number
		if _, err := fmt.Sscanf(e.Name(), "%d:%d", &n.major, &n.minor); err != nil {
			t.Fatal(err)
		}
		if _, everywhere := everyKernelsDevices[n]; !everywhere {
			return n
		}
	}
	t.Fatal("this host has no character devices of its own")
	return number{}
}

// loopDevice makes a block device that ends with the test, and a node of another
// name for it.
func loopDevice(t *testing.T) (node, other string, n number) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("block devices need root")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	node = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", node).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		t.Fatal(err)
	}
	other = filepath.Join(dir, "node")
	if err := unix.Mknod(other, unix.S_IFBLK|0o640, int(st.Rdev)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(other, 0, 6); err != nil {
		t.Fatal(err)
	}
	return node, other, numberOf(st.Rdev)
}

// What is opened on the host, and how, follows from the bundle's devices, mounts and rules.
func TestBlockDevicesAreGivenAsTheRulesAllow(t *testing.T) {
	node, other, n := loopDevice(t)
	rule := func(access string, allow bool) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: "b", Major: &n.major, Minor: &n.minor, Access: access}
	}
	all, none := specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"}, specs.LinuxDeviceCgroup{Access: "rwm"}
	named := specs.LinuxDevice{Path: "/dev/xvda", Type: "b", Major: n.major, Minor: n.minor}
	bind := func(options ...string) specs.Mount {
		return specs.Mount{Destination: "/dev/xvdb", Type: "bind", Source: other, Options: append(options, "bind")}
	}
	for _, c := range []struct {
		name     string
		devices  []specs.LinuxDevice
		rules    []specs.LinuxDeviceCgroup
		mounts   []specs.Mount
		count    int
		readOnly bool
		says     string
	}{
		{name: "docker --device", devices: []specs.LinuxDevice{named}, rules: []specs.LinuxDeviceCgroup{none, rule("rwm", true)}, count: 1},
		{name: "docker --device :r", devices: []specs.LinuxDevice{named}, rules: []specs.LinuxDeviceCgroup{none, rule("r", true)}, count: 1, readOnly: true},
		{name: "two nodes of one device", devices: []specs.LinuxDevice{named, {Path: "/dev/two", Type: "b", Major: n.major, Minor: n.minor}}, rules: []specs.LinuxDeviceCgroup{all}, count: 1},
		{name: "write taken back", devices: []specs.LinuxDevice{named}, rules: []specs.LinuxDeviceCgroup{all, rule("w", false)}, count: 1, readOnly: true},
		{name: "bind mount", rules: []specs.LinuxDeviceCgroup{none, rule("rw", true)}, mounts: []specs.Mount{bind()}, count: 1},
		{name: "read-only bind mount", rules: []specs.LinuxDeviceCgroup{none, rule("rw", true)}, mounts: []specs.Mount{bind("ro")}, count: 1, readOnly: true},
		{name: "node and bind mount", devices: []specs.LinuxDevice{named}, rules: []specs.LinuxDeviceCgroup{none, rule("rw", true)}, mounts: []specs.Mount{bind("ro")}, count: 1},
		{name: "privileged, by its own name", devices: []specs.LinuxDevice{{Path: node, Type: "b", Major: n.major, Minor: n.minor}}, rules: []specs.LinuxDeviceCgroup{all}},
		{name: "privileged, by another name", devices: []specs.LinuxDevice{named}, rules: []specs.LinuxDeviceCgroup{all}, count: 1},
		{name: "no such device on the host", devices: []specs.LinuxDevice{{Path: "/dev/none", Type: "b", Major: 4000, Minor: 1}}},
		{name: "no rule", devices: []specs.LinuxDevice{named}, rules: []specs.LinuxDeviceCgroup{none, rule("m", true)}, count: 1, readOnly: true, says: "no rule lets the container use the block device " + node},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := Load(dockerBundle(t, func(s *specs.Spec) {
				s.Linux.Devices, s.Linux.Resources.Devices = c.devices, c.rules
				s.Mounts = append(s.Mounts, c.mounts...)
			}), Options{})
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(b.Devices) != c.count {
				t.Fatalf("devices %+v", b.Devices)
			}
			for _, d := range b.Devices {
				if d.Node != node && d.Node != other || d.ReadOnly != c.readOnly || len(d.Binds) != len(c.mounts) {
					t.Errorf("device %+v", d)
				}
				for _, bound := range d.Binds {
					if bound.Destination != "/dev/xvdb" || bound.Mode != 0o640 || bound.GID != 6 {
						t.Errorf("bind %+v", bound)
					}
				}
			}
		})
	}
}
