// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// plannedDisk is a handed block device and the serial number by which the guest
// finds it.
type plannedDisk struct {
	*vmv1.HandedDevice
	serial string
}

// diskPrefix begins the serial numbers of a container's disks. They follow from
// its key, so that the disks of a container are found again without a record
// of them. A serial number has room for 20 characters.
func diskPrefix(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "d" + hex.EncodeToString(sum[:6]) + "-"
}

func (p *plan) planDisks() error {
	if n := len(p.req.Devices); n > hypervisor.MaxDisks {
		return bus.Errorf(bus.InvalidArgument, "create hands over %d block devices; a VM has room for %d", n, hypervisor.MaxDisks)
	}
	for i, d := range p.req.Devices {
		for _, b := range d.Binds {
			if !filepath.IsAbs(b.Destination) {
				return bus.Errorf(bus.InvalidArgument, "mount destination %q is not an absolute path", b.Destination)
			}
		}
		p.disks = append(p.disks, plannedDisk{d, diskPrefix(p.key) + itoa(i)})
	}
	return nil
}

// attachDisks plugs the container's block devices into the VM. They end with it,
// so only the containers of a pod detach them.
func (c *container) attachDisks(ctx context.Context, p *plan, files *handed) error {
	for _, d := range p.disks {
		file, ok := files.file(d.Index)
		if !ok {
			return bus.Errorf(bus.InvalidArgument, "block device %d:%d names descriptor %d of %d handed over", d.Major, d.Minor, d.Index, len(files.files))
		}
		err := c.sb.machine().AttachDisk(ctx, hypervisor.Disk{ID: d.serial, File: file, ReadOnly: d.ReadOnly})
		if err != nil {
			return fmt.Errorf("give block device %d:%d to the VM: %w", d.Major, d.Minor, err)
		}
	}
	return nil
}

// disksForAgent tells the guest which disk is which device of the configuration.
func (p *plan) disksForAgent() []*agentv1.Disk {
	var disks []*agentv1.Disk
	for _, d := range p.disks {
		disk := &agentv1.Disk{Serial: d.serial, HostMajor: d.Major, HostMinor: d.Minor}
		for _, b := range d.Binds {
			disk.Binds = append(disk.Binds, &agentv1.DiskBind{Destination: b.Destination, Mode: b.Mode, Uid: b.Uid, Gid: b.Gid})
		}
		disks = append(disks, disk)
	}
	return disks
}
