// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	got, err := guestDevices(l, root, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].Path != "/dev/kmsg" || got[1].Path != "/dev/net/tun" || got[2].Path != "/dev/fifo" {
		t.Errorf("the container gets %v", got)
	}
}

// What the bundle names is the same device in the guest, a disk that was plugged in for it, or nothing there as on the host.
func TestDevicesAreTheGuestsOrRefused(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, dir := range []string{"sys/dev/char/10:229", "sys/dev/char/244:1", "sys/dev/block/8:0"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	given := disks{{Disk{HostMajor: 7, HostMinor: 3}, "/dev/vdb", 254, 16}}
	for _, c := range []struct {
		device specs.LinuxDevice
		major  int64
		minor  int64
		says   string
	}{
		{specs.LinuxDevice{Type: "c", Major: 10, Minor: 229}, 10, 229, ""},
		{specs.LinuxDevice{Type: "b", Major: 7, Minor: 3}, 254, 16, ""},
		{specs.LinuxDevice{Type: "b", Major: 7, Minor: 4}, 7, 4, ""},
		{specs.LinuxDevice{Type: "c", Major: 4000, Minor: 4}, 4000, 4, ""},
		{specs.LinuxDevice{Type: "p"}, 0, 0, ""},
		{specs.LinuxDevice{Type: "b", Major: 8}, 0, 0, "another one in the guest"},
		{specs.LinuxDevice{Type: "c", Major: 244, Minor: 1}, 0, 0, "another one in the guest"}, // the agent's link
		{specs.LinuxDevice{Type: "z"}, 0, 0, "unknown"},
	} {
		c.device.Path = "/dev/x"
		got, err := guestDevices(&specs.Linux{Devices: []specs.LinuxDevice{c.device}}, root, given)
		switch {
		case c.says != "":
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "/dev/x") {
				t.Errorf("%+v gives %v", c.device, err)
			}
		case err != nil || len(got) != 1 || got[0].Major != c.major || got[0].Minor != c.minor:
			t.Errorf("%+v gives %+v, %v", c.device, got, err)
		}
	}
}

func TestRulesAndLimitsOfTheHostsDisksAreThoseOfTheGuests(t *testing.T) {
	t.Parallel()
	given := disks{{Disk{HostMajor: 7, HostMinor: 3}, "/dev/vdb", 254, 16}, {Disk{HostMajor: 7, HostMinor: 4}, "/dev/vdc", 254, 32}}
	seven, three, one, fuse := int64(7), int64(3), int64(1), int64(10)
	rules := given.guestRules([]specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "b", Access: "m"},
		{Allow: true, Type: "b", Major: &seven, Minor: &three, Access: "r"},
		{Allow: true, Type: "b", Major: &seven, Access: "w"}, // both
		{Allow: true, Type: "b", Major: &one, Minor: &three, Access: "rwm"},
		{Allow: true, Type: "c", Major: &fuse, Access: "rwm"},
	})
	var got []string
	for _, r := range rules {
		text := r.Type + " "
		if r.Major != nil {
			text += strconv.FormatInt(*r.Major, 10)
		}
		text += ":"
		if r.Minor != nil {
			text += strconv.FormatInt(*r.Minor, 10)
		}
		got = append(got, text+" "+r.Access)
	}
	if want := []string{" : rwm", "b : m", "b 254:16 r", "b 254:16 w", "b 254:32 w", "c 10: rwm"}; !slices.Equal(got, want) {
		t.Errorf("the rules are %q, want %q", got, want)
	}

	weight, leaf, much := uint16(500), uint16(10), uint16(2000)
	throttle := func(major, minor int64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: 1 << 20}
		d.Major, d.Minor = major, minor
		return []specs.LinuxThrottleDevice{d}
	}
	weigh := func(major, minor int64, weight, leaf *uint16) []specs.LinuxWeightDevice {
		d := specs.LinuxWeightDevice{Weight: weight, LeafWeight: leaf}
		d.Major, d.Minor = major, minor
		return []specs.LinuxWeightDevice{d}
	}
	b, weights, err := given.guestBlockIO(&specs.LinuxBlockIO{
		WeightDevice: weigh(7, 4, &weight, nil), ThrottleReadBpsDevice: throttle(7, 3), ThrottleWriteIOPSDevice: throttle(7, 4),
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(b.WeightDevice) != 0 || len(weights) != 1 || weights[0].Major != 254 || weights[0].Minor != 32 ||
		b.ThrottleReadBpsDevice[0].Minor != 16 || b.ThrottleWriteIOPSDevice[0].Major != 254 {
		t.Errorf("the limits are %+v, %+v", b, weights)
	}
	for property, b := range map[string]*specs.LinuxBlockIO{
		"throttleWriteBpsDevice: block device 8:0": {ThrottleWriteBpsDevice: throttle(8, 0)},
		"weightDevice: block device 8:0":           {WeightDevice: weigh(8, 0, &weight, nil)},
		"weightDevice 7:3: leafWeight":             {WeightDevice: weigh(7, 3, nil, &leaf)},
		"weightDevice 7:3: weight 2000":            {WeightDevice: weigh(7, 3, &much, nil)},
	} {
		if _, _, err := given.guestBlockIO(b); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), property) {
			t.Errorf("%v, want a refusal that names %q", err, property)
		}
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

func TestAFIFOHasNoNumbers(t *testing.T) {
	t.Parallel()
	l := &specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/fifo", Type: "p", Major: 8, Minor: 666}}}
	got, err := guestDevices(l, t.TempDir(), disks{})
	if err != nil || len(got) != 1 || got[0].Major != 0 || got[0].Minor != 0 {
		t.Errorf("the devices are %+v, %v", got, err)
	}
}
