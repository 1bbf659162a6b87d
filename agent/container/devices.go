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

// guestDevices decides which device nodes the container gets: those of devices
// that the guest's kernel has, since a node made from the host's numbers would
// be a dead or, worse, another device.
//
// A device that was asked for by name and is missing is refused. Privileged containers are different: engines name every
// device node of the host for them, and mean all devices of the machine. The container's machine is the guest, so
// it gets those of the list that the guest has under the same name, and may make nodes for the others.
func guestDevices(l *specs.Linux, root string) ([]specs.LinuxDevice, error) {
	if allDevices(l.Resources) {
		return slices.DeleteFunc(slices.Clone(l.Devices), func(d specs.LinuxDevice) bool {
			return d.Type != "p" && !sameInGuest(d, root)
		}), nil
	}
	for _, d := range l.Devices {
		var class string
		switch d.Type {
		case "c", "u":
			class = "char"
		case "b":
			class = "block"
		case "p":
			continue
		default:
			return nil, fmt.Errorf("%w: linux.devices %q: type %q is unknown", ErrInvalid, d.Path, d.Type)
		}
		if _, err := os.Stat(fmt.Sprintf("%s/sys/dev/%s/%d:%d", root, class, d.Major, d.Minor)); err != nil {
			return nil, fmt.Errorf("%w: linux.devices %q: the guest has no %s device %d:%d", ErrInvalid, d.Path, class, d.Major, d.Minor)
		}
	}
	return l.Devices, nil
}

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
