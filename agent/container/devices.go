// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// guestDevices decides which device nodes the container gets. What the host has
// and the guest has not was refused by the frontend or plugged in, so a number
// that means nothing here means nothing there; one that means another device is refused.
//
// Privileged containers are different: engines name every
// device node of the host for them, and mean all devices of the machine. The container's machine is the guest, so
// it gets those of the list that the guest has under the same name, and may make nodes for the others.
//
// A disk that was plugged in for the container gets its nodes with the guest's numbers.
func guestDevices(l *specs.Linux, root string, given disks) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	all := allDevices(l.Resources)
	for _, d := range l.Devices {
		if d.Type == "p" {
			d.Major, d.Minor = 0, 0 // a FIFO has none, and libcontainer looks for what is written
		}
		if disk, ok := given.find(d.Major, d.Minor); ok && d.Type == "b" {
			d.Major, d.Minor = disk.major, disk.minor
			out = append(out, d)
			continue
		}
		if all {
			if d.Type == "p" || sameInGuest(d, root) {
				out = append(out, d)
			}
			continue
		}
		var class string
		switch d.Type {
		case "c", "u":
			class = "char"
		case "b":
			class = "block"
		case "p":
			out = append(out, d)
			continue
		default:
			return nil, fmt.Errorf("%w: linux.devices %q: type %q is unknown", ErrInvalid, d.Path, d.Type)
		}
		// A number that neither the host nor the guest has a device for makes a node without
		// one, as asked. One that the guest has is the same device only where numbers are fixed.
		_, err := os.Stat(fmt.Sprintf("%s/sys/dev/%s/%d:%d", root, class, d.Major, d.Minor))
		if err == nil && (class == "block" || !slices.Contains(fixedMajors, d.Major)) {
			return nil, fmt.Errorf("%w: linux.devices %q: %s device %d:%d is another one in the guest", ErrInvalid, d.Path, class, d.Major, d.Minor)
		}
		out = append(out, d)
	}
	return out, nil
}

// fixedMajors are those of memory devices, terminals and miscellaneous devices,
// whose minors are fixed too, or made as the kernel starts (Documentation/admin-guide/devices.txt).
var fixedMajors = []int64{1, 5, 10}

// allDevices says whether the container may use every device, which is how a
// privileged one looks in the specification: the last rule for all devices allows all access.
func allDevices(r *specs.LinuxResources) bool {
	if r == nil {
		return false
	}
	all := false
	for _, rule := range r.Devices {
		if (rule.Type == "" || rule.Type == "a") && anyNumber(rule.Major) && anyNumber(rule.Minor) {
			all = rule.Allow && (rule.Access == "" || strings.Contains(rule.Access, "r") && strings.Contains(rule.Access, "w") && strings.Contains(rule.Access, "m"))
		}
	}
	return all
}

func anyNumber(n *int64) bool { return n == nil || *n < 0 }

// sameInGuest says whether the guest's own device node of this name is the
// same device. The link's ports are the agent's.
func sameInGuest(d specs.LinuxDevice, root string) bool {
	if !strings.HasPrefix(path.Clean(d.Path), "/dev/") || strings.HasPrefix(path.Base(d.Path), "vport") {
		return false
	}
	var st unix.Stat_t
	if err := unix.Lstat(path.Join(root, d.Path), &st); err != nil {
		return false
	}
	kind := st.Mode & unix.S_IFMT
	return (kind == unix.S_IFCHR && (d.Type == "c" || d.Type == "u") || kind == unix.S_IFBLK && d.Type == "b") &&
		int64(unix.Major(st.Rdev)) == d.Major && int64(unix.Minor(st.Rdev)) == d.Minor
}
