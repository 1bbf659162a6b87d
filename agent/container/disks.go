// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Disk is a block device of the host that the host has plugged into the VM for
// this container. The configuration names it by the host's numbers.
type Disk struct {
	Serial               string // by which the guest finds it
	HostMajor, HostMinor int64
	Binds                []DiskBind
}

// DiskBind is a bind mount of the host's device node.
type DiskBind struct {
	Destination string // path in the container
	Mode        uint32 // permission bits of the node
	UID, GID    int
}

// disks are the container's disks as the guest has them.
type disks []guestDisk

type guestDisk struct {
	Disk
	node         string // in the guest's /dev
	major, minor int64
}

// findDisks waits until the guest has every disk.
func (m *Manager) findDisks(ctx context.Context, asked []Disk) (disks, error) {
	var found disks
	for _, d := range asked {
		node, err := m.cfg.FindDisk(ctx, d.Serial)
		if err != nil {
			return nil, fmt.Errorf("block device %d:%d: %w", d.HostMajor, d.HostMinor, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(node, &st); err != nil {
			return nil, fmt.Errorf("block device %d:%d: its node in the guest: %w", d.HostMajor, d.HostMinor, err)
		}
		// One node serves all binds of the disk, which no other container has.
		for _, b := range d.Binds {
			if err := errors.Join(os.Chown(node, b.UID, b.GID), os.Chmod(node, os.FileMode(b.Mode&0o777))); err != nil {
				return nil, fmt.Errorf("block device %d:%d: %w", d.HostMajor, d.HostMinor, err)
			}
		}
		found = append(found, guestDisk{d, node, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))})
	}
	return found, nil
}

// find returns the disk that the host's numbers mean.
func (d disks) find(major, minor int64) (guestDisk, bool) {
	i := slices.IndexFunc(d, func(g guestDisk) bool { return g.HostMajor == major && g.HostMinor == minor })
	if i < 0 {
		return guestDisk{}, false
	}
	return d[i], true
}

// bound returns the node that is bind-mounted at a destination.
func (d disks) bound(destination string) (node string, ok bool) {
	for _, disk := range d {
		for _, b := range disk.Binds {
			if containerPath(b.Destination) == destination {
				return disk.node, true
			}
		}
	}
	return "", false
}

// guestRules translates the device rules: those for block devices of the host
// become rules for the disks that they cover. A rule that covers none is about
// a device that the guest does not have, and must not become one about another
// of the same number. Character devices have the same numbers in every kernel.
func (d disks) guestRules(rules []specs.LinuxDeviceCgroup) []specs.LinuxDeviceCgroup {
	var out []specs.LinuxDeviceCgroup
	for _, rule := range rules {
		if rule.Type != "b" || anyNumber(rule.Major) && anyNumber(rule.Minor) {
			out = append(out, rule)
			continue
		}
		for _, disk := range d {
			if (anyNumber(rule.Major) || *rule.Major == disk.HostMajor) && (anyNumber(rule.Minor) || *rule.Minor == disk.HostMinor) {
				rule := rule
				major, minor := disk.major, disk.minor
				rule.Major, rule.Minor = &major, &minor
				out = append(out, rule)
			}
		}
	}
	return out
}

// guestBlockIO translates what linux.resources.blockIO says of single devices to
// the guest's numbers; create and update call it. A device that is not one of
// the container's disks is refused by name. The weights of single devices come
// back beside it: libcontainer writes them for BFQ alone, which the guest's kernel
// does not have, and would leave them out without a word (see weighDisks).
func (d disks) guestBlockIO(b *specs.LinuxBlockIO) (*specs.LinuxBlockIO, []specs.LinuxWeightDevice, error) {
	if b == nil {
		return nil, nil, nil
	}
	out := *b
	out.WeightDevice = nil
	var weights []specs.LinuxWeightDevice
	for _, w := range b.WeightDevice {
		disk, ok := d.find(w.Major, w.Minor)
		switch {
		case w.LeafWeight != nil && *w.LeafWeight != 0:
			return nil, nil, fmt.Errorf("%w: linux.resources.blockIO.weightDevice %d:%d: leafWeight %s", ErrInvalid, w.Major, w.Minor, whyCgroup2)
		case w.Weight == nil || *w.Weight == 0:
		case *w.Weight < 10 || *w.Weight > 1000:
			return nil, nil, fmt.Errorf("%w: linux.resources.blockIO.weightDevice %d:%d: weight %d is not between 10 and 1000", ErrInvalid, w.Major, w.Minor, *w.Weight)
		case !ok:
			return nil, nil, noSuchDisk("weightDevice", w.Major, w.Minor)
		default:
			w.Major, w.Minor = disk.major, disk.minor
			weights = append(weights, w)
		}
	}
	for _, list := range []struct {
		name    string
		devices *[]specs.LinuxThrottleDevice
	}{
		{"throttleReadBpsDevice", &out.ThrottleReadBpsDevice}, {"throttleWriteBpsDevice", &out.ThrottleWriteBpsDevice},
		{"throttleReadIOPSDevice", &out.ThrottleReadIOPSDevice}, {"throttleWriteIOPSDevice", &out.ThrottleWriteIOPSDevice},
	} {
		devices := slices.Clone(*list.devices)
		for i, t := range devices {
			disk, ok := d.find(t.Major, t.Minor)
			if !ok {
				return nil, nil, noSuchDisk(list.name, t.Major, t.Minor)
			}
			devices[i].Major, devices[i].Minor = disk.major, disk.minor
		}
		*list.devices = devices
	}
	return &out, weights, nil
}

func noSuchDisk(property string, major, minor int64) error {
	return fmt.Errorf("%w: linux.resources.blockIO.%s: block device %d:%d was not given to this container (linux.devices)", ErrInvalid, property, major, minor)
}

// weighDisks writes the weights of single disks, and makes the kernel heed them.
func (c *Container) weighDisks(weights []specs.LinuxWeightDevice) error {
	for _, w := range weights {
		if err := c.m.cfg.WeighDisk(w.Major, w.Minor); err != nil {
			return err
		}
		line := fmt.Sprintf("%d:%d %d", w.Major, w.Minor, cgroups.ConvertBlkIOToIOWeightValue(*w.Weight))
		if err := os.WriteFile(filepath.Join(string(c.cgroup), "io.weight"), []byte(line), 0); err != nil {
			return fmt.Errorf("setting the weight of disk %s: %w", strings.TrimSpace(line), err)
		}
	}
	return nil
}

// holdMounts opens the container's mount namespace, to be kept until
// letGoOfDisks: a file system on a disk is then unmounted by us and not by some
// worker thread of the kernel, later than the VM may end.
func (c *Container) holdMounts(pid int) (*os.File, error) {
	if len(c.disks) == 0 {
		return nil, nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, fmt.Errorf("holding the container's mounts: %w", err)
	}
	return f, nil
}

// letGoOfDisks has everything written that the container wrote to its disks. It
// is called when no process of the container is left.
func (c *Container) letGoOfDisks() {
	if len(c.disks) == 0 {
		return
	}
	if c.mounts != nil {
		_ = c.mounts.Close() // the last handle: the mounts go before this returns
	}
	unix.Sync() // what other handles kept mounted, and the devices themselves
}
