// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestPrivilegedContainersGetTheGuestsDevices(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes device nodes")
	}
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "dev/net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, number := range map[string][2]uint32{"kmsg": {1, 11}, "net/tun": {10, 200}, "nvme0n1": {259, 7}, "vport0p1": {244, 1}} {
		if err := unix.Mknod(filepath.Join(root, "dev", name), unix.S_IFCHR|0o600, int(unix.Mkdev(number[0], number[1]))); err != nil {
			t.Fatal(err)
		}
	}
	l := &specs.Linux{
		Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Access: "rwm"}}},
		Devices: []specs.LinuxDevice{
			{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11},
			{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200},
			{Path: "/dev/nvme0n1", Type: "b", Major: 259, Minor: 7},  // of the same name, and another kind
			{Path: "/dev/sda", Type: "b", Major: 8, Minor: 0},        // the host's alone
			{Path: "/dev/kvm", Type: "c", Major: 1, Minor: 11},       // another name
			{Path: "/dev/vport0p1", Type: "c", Major: 244, Minor: 1}, // the agent's link
			{Path: "/dev/fifo", Type: "p"},
		},
	}
	got, err := guestDevices(l, root)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].Path != "/dev/kmsg" || got[1].Path != "/dev/net/tun" || got[2].Path != "/dev/fifo" {
		t.Errorf("the container gets %v", got)
	}
	l.Resources.Devices = l.Resources.Devices[:1]
	if got, err := guestDevices(l, root); err == nil {
		t.Errorf("without privilege a missing device gives %v", got)
	}
}

func TestWhatAPrivilegedContainerLooksLike(t *testing.T) {
	t.Parallel()
	one, wild := int64(1), int64(-1)
	deny, allow := specs.LinuxDeviceCgroup{Access: "rwm"}, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"}
	for name, c := range map[string]struct {
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		"no rule":             {nil, false},
		"Docker's":            {[]specs.LinuxDeviceCgroup{allow}, true},
		"written out":         {[]specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Major: &wild, Minor: &wild}}, true},
		"ordinary":            {[]specs.LinuxDeviceCgroup{deny, {Allow: true, Type: "c", Major: &one, Access: "rwm"}}, false},
		"without mknod":       {[]specs.LinuxDeviceCgroup{{Allow: true, Access: "rw"}}, false},
		"all character ones":  {[]specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Access: "rwm"}}, false},
		"forbidden after all": {[]specs.LinuxDeviceCgroup{allow, deny}, false},
	} {
		if got := allDevices(&specs.LinuxResources{Devices: c.rules}); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if allDevices(nil) {
		t.Error("a container without limits is not privileged")
	}
}
