// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// number names a device within a kernel.
type number struct{ major, minor int64 }

func (n number) String() string { return fmt.Sprintf("%d:%d", n.major, n.minor) }

// everyKernelsDevices are character devices that have the same number and
// meaning in every kernel and that the guest's has, so that it serves as well
// as the host's.
var everyKernelsDevices = map[number]string{
	{1, 3}: "/dev/null", {1, 5}: "/dev/zero", {1, 7}: "/dev/full", {1, 8}: "/dev/random", {1, 9}: "/dev/urandom",
	{1, 11}: "/dev/kmsg", {5, 0}: "/dev/tty", {5, 1}: "/dev/console", {5, 2}: "/dev/ptmx",
	{10, 200}: "/dev/net/tun", {10, 229}: "/dev/fuse",
}

// Device is a block device of the host that the container is given.
type Device struct {
	Major, Minor int64
	Node         string // path of its node on the host
	// ReadOnly: the container's device rules let nobody write to it, or every
	// bind mount of it is read-only. Then it is opened read-only on the host, which
	// not even a guest whose kernel was taken over can change.
	ReadOnly bool
	Binds    []DeviceBind
}

// DeviceBind is a bind mount of the device's node.
type DeviceBind struct {
	Destination    string // absolute in the container, cleaned
	Mode, UID, GID uint32 // of the host's node
	readOnly       bool
	number         number
	node           string
}

// maxDevices is how many block devices a virtual machine has room for.
const maxDevices = 30

// checkDevices judges what can be judged without the host's files. A privileged container passes: engines name every
// device node of the host for it and mean all of the machine's, which is the
// virtual machine's, and the guest gives it those that it has itself.
func checkDevices(linux *specs.Linux) error {
	var errs []error
	for _, d := range linux.Devices {
		switch d.Type {
		case "c", "u", "b", "p":
			if !path.IsAbs(d.Path) {
				errs = append(errs, refuse("linux.devices", fmt.Sprintf("path %q is not absolute", d.Path)))
			}
		default:
			errs = append(errs, refuse("linux.devices", fmt.Sprintf("%s: unknown device type %q", d.Path, d.Type)))
		}
	}
	return shorten(errs)
}

// shorten keeps a rule short of --privileged, with every device of the host,
// from filling a screen.
func shorten(errs []error) error {
	if len(errs) > 3 {
		errs = append(errs[:3:3], refuse("linux.devices", fmt.Sprintf("and %d more", len(errs)-3)))
	}
	return errors.Join(errs...)
}

// devices finds the host's block devices that the container is to have: those of
// linux.devices and those whose node is bind-mounted. The host's character devices cannot be given away.
func devices(linux *specs.Linux, binds []DeviceBind, taken []Bind) ([]Device, error) {
	var (
		found []*Device
		errs  []error
	)
	give := func(n number, node string) *Device {
		for _, d := range found {
			if d.Major == n.major && d.Minor == n.minor {
				return d
			}
		}
		d := &Device{Major: n.major, Minor: n.minor, Node: node}
		found = append(found, d)
		return d
	}
	asked := map[number]bool{} // by linux.devices
	for _, d := range linux.Devices {
		n := number{d.Major, d.Minor}
		block := d.Type == "b"
		_, everywhere := everyKernelsDevices[n]
		switch {
		case d.Type == "p" || !block && everywhere || !onHost(block, n):
			// A FIFO is the container's own; a node without a device on the host is one in the guest too.
		case allDevices(linux.Resources) && (!block || isNode(d.Path, n)):
			// One of all devices of a privileged container; only one of another name was asked for by somebody.
		case !block:
			errs = append(errs, refuse("linux.devices", fmt.Sprintf("%s (%s %s): a character device of the host cannot be given to a virtual machine; "+
				"do without --device, or run this container with runc", d.Path, d.Type, n)))
		default:
			node, err := hostNode(n)
			if err != nil {
				errs = append(errs, refuse("linux.devices", fmt.Sprintf("%s (b %s): %v", d.Path, n, err)))
				continue
			}
			give(n, node)
			asked[n] = true
		}
	}
	writable := map[number]bool{} // by a bind mount
	for _, b := range binds {
		for _, other := range taken {
			if other.Destination == b.Destination {
				errs = append(errs, refuse("mounts", fmt.Sprintf("%s is the place of a block device and of a file", b.Destination)))
			}
		}
		d := give(b.number, b.node)
		d.Binds = append(d.Binds, b)
		writable[b.number] = writable[b.number] || !b.readOnly
	}
	var out []Device
	for _, d := range found {
		n := number{d.Major, d.Minor}
		read, write := access(linux.Resources, n)
		if !read && !write {
			errs = append(errs, refuse("linux.resources.devices", fmt.Sprintf("no rule lets the container use the block device %s (%s); give it with --device", d.Node, n)))
		}
		d.ReadOnly = !write || !asked[n] && !writable[n]
		out = append(out, *d)
	}
	if len(out) > maxDevices {
		errs = append(errs, refuse("linux.devices", fmt.Sprintf("%d block devices, and a virtual machine has room for %d", len(out), maxDevices)))
	}
	return out, shorten(errs)
}

// onHost says whether the host has the device.
func onHost(block bool, n number) bool {
	class := "char"
	if block {
		class = "block"
	}
	_, err := os.Lstat(fmt.Sprintf("/sys/dev/%s/%s", class, n))
	return err == nil
}

// isNode says whether the host's path is the node of a block device.
func isNode(name string, n number) bool {
	var st unix.Stat_t
	return unix.Stat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && numberOf(st.Rdev) == n
}

func numberOf(rdev uint64) number {
	return number{int64(unix.Major(rdev)), int64(unix.Minor(rdev))}
}

// hostNode finds the node by which a block device can be opened: the one that
// the kernel makes in /dev, whatever the container calls its own.
func hostNode(n number) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%s/uevent", n))
	if err != nil {
		return "", fmt.Errorf("reading the name of the host's block device: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			if node := filepath.Join("/dev", name); isNode(node, n) {
				return node, nil
			}
		}
	}
	return "", errors.New("the host has this block device and no node for it in /dev, so it cannot be opened")
}

// access is what the device rules allow with a block device: the last word
// counts, and without a word nothing is allowed.
func access(r *specs.LinuxResources, n number) (read, write bool) {
	if r == nil {
		return false, false
	}
	for _, rule := range r.Devices {
		if rule.Type != "" && rule.Type != "a" && rule.Type != "b" ||
			!wild(rule.Major) && *rule.Major != n.major || !wild(rule.Minor) && *rule.Minor != n.minor {
			continue
		}
		if rule.Access == "" || strings.Contains(rule.Access, "r") {
			read = rule.Allow
		}
		if rule.Access == "" || strings.Contains(rule.Access, "w") {
			write = rule.Allow
		}
	}
	return read, write
}

func wild(n *int64) bool { return n == nil || *n < 0 }

// allDevices says whether the container may use every device, which is how a
// privileged one looks: the last rule for all devices allows all access. The agent reads it in the same way.
func allDevices(r *specs.LinuxResources) bool {
	if r == nil {
		return false
	}
	all := false
	for _, rule := range r.Devices {
		if (rule.Type == "" || rule.Type == "a") && wild(rule.Major) && wild(rule.Minor) {
			all = rule.Allow && (rule.Access == "" || strings.Contains(rule.Access, "r") && strings.Contains(rule.Access, "w") && strings.Contains(rule.Access, "m"))
		}
	}
	return all
}

// CheckBlockIO holds the limits for single block devices against the devices
// that the container was given: others are not in its virtual machine.
func CheckBlockIO(b *specs.LinuxBlockIO, given []Device) error {
	if b == nil {
		return nil
	}
	var errs []error
	check := func(property string, major, minor int64) {
		for _, d := range given {
			if d.Major == major && d.Minor == minor {
				return
			}
		}
		errs = append(errs, refuse("linux.resources.blockIO."+property, fmt.Sprintf("the block device %d:%d was not given to this container; "+
			"give it with --device, or do without the limit: its root and volumes are files of the host in the virtual machine", major, minor)))
	}
	for _, w := range b.WeightDevice {
		if w.Weight != nil && *w.Weight != 0 {
			check("weightDevice", w.Major, w.Minor)
		}
		if w.LeafWeight != nil && *w.LeafWeight != 0 {
			errs = append(errs, refuse("linux.resources.blockIO.weightDevice", fmt.Sprintf("%d:%d: cgroup v2, which the virtual machine uses, has no leafWeight", w.Major, w.Minor)))
		}
	}
	for _, list := range []struct {
		property string
		devices  []specs.LinuxThrottleDevice
	}{
		{"throttleReadBpsDevice", b.ThrottleReadBpsDevice}, {"throttleWriteBpsDevice", b.ThrottleWriteBpsDevice},
		{"throttleReadIOPSDevice", b.ThrottleReadIOPSDevice}, {"throttleWriteIOPSDevice", b.ThrottleWriteIOPSDevice},
	} {
		for _, t := range list.devices {
			check(list.property, t.Major, t.Minor)
		}
	}
	return errors.Join(errs...)
}
