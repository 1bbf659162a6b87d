// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"bulkhead/vm-worker/hypervisor"

	"golang.org/x/sys/unix"
)

// hotplugBus is the PCI bridge into which devices are plugged while the VM runs.
const hotplugBus = "hotplug"

// nodePrefix begins the name of a disk's block node; its device has the plain id.
const nodePrefix = "node-"

// unplugTimeout bounds the wait for a guest to give a disk up.
const unplugTimeout = 10 * time.Second

// AttachDisk implements hypervisor.VM. QEMU gets the device open, so its jail
// and its device cgroup stay as narrow as they are; what it may do with it was
// decided by whoever opened it.
//
// The host's page cache is bypassed (cache.direct): both sides then see what
// the other wrote as soon as it is on the device, nothing is cached twice, and
// the container's own cgroup on the host pays for the I/O. Native AIO goes with
// it, and needs no threads. Two containers may have one device, as with runc,
// so QEMU's lock on it is off.
func (v *vm) AttachDisk(ctx context.Context, d hypervisor.Disk) (err error) {
	if !validDeviceID(d.ID) {
		return v.wrap(fmt.Errorf("disk id %q is not a letter and up to 19 letters, digits and '-'", d.ID))
	}
	logical, physical, err := blockSizes(d.File)
	if err != nil {
		return v.wrap(fmt.Errorf("disk %s: %w", d.ID, err))
	}
	var set struct {
		ID int64 `json:"fdset-id"`
	}
	if err := v.monitor.executeWith(ctx, "add-fd", map[string]any{"opaque": d.ID}, &set, d.File); err != nil {
		return v.wrap(fmt.Errorf("disk %s: %w", d.ID, err))
	}
	added := false
	defer func() {
		if err != nil {
			err = v.wrap(fmt.Errorf("disk %s: %w", d.ID, err))
		}
		// The node holds a descriptor of its own.
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), unplugTimeout)
		defer cancel()
		if err != nil && added {
			err = errors.Join(err, v.monitor.execute(late, "blockdev-del", map[string]any{"node-name": nodePrefix + d.ID}, nil))
		}
		if rmErr := v.monitor.execute(late, "remove-fd", map[string]any{"fdset-id": set.ID}, nil); err == nil {
			err = rmErr
		}
	}()
	err = v.monitor.execute(ctx, "blockdev-add", map[string]any{
		"driver": "host_device", "node-name": nodePrefix + d.ID, "filename": fmt.Sprintf("/dev/fdset/%d", set.ID),
		"read-only": d.ReadOnly, "locking": "off", "discard": "unmap",
		"cache": map[string]any{"direct": true}, "aio": "native",
	}, nil)
	if err != nil {
		return err
	}
	added = true
	return v.monitor.execute(ctx, "device_add", map[string]any{
		"driver": "virtio-blk-pci", "id": d.ID, "bus": hotplugBus, "disable-legacy": "on",
		"drive": nodePrefix + d.ID, "serial": d.ID,
		"logical_block_size": logical, "physical_block_size": physical, "share-rw": true,
	}, nil)
}

func validDeviceID(id string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return id != "" && len(id) <= 20 && strings.Contains(letters, id[:1]) && strings.Trim(id, letters+"0123456789-") == ""
}

// blockSizes asks a block device for its sector sizes, which QEMU does not: a
// guest that wrote less than a sector would be refused.
func blockSizes(f *os.File) (logical, physical int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var logicalErr, physicalErr error
	err = raw.Control(func(fd uintptr) {
		logical, logicalErr = unix.IoctlGetInt(int(fd), unix.BLKSSZGET)
		physical, physicalErr = unix.IoctlGetInt(int(fd), unix.BLKPBSZGET)
	})
	if err := errors.Join(err, logicalErr, physicalErr); err != nil {
		return 0, 0, fmt.Errorf("asking the host's block device for its sector size: %w", err)
	}
	return logical, max(logical, physical), nil
}

// DetachDisks implements hypervisor.VM. What is plugged in is asked of QEMU, so
// that an adopted VM needs no other record of it.
func (v *vm) DetachDisks(ctx context.Context, idPrefix string) error {
	err := v.detachDisks(ctx, idPrefix)
	if err != nil && v.gone() {
		return nil // they went with its process
	}
	return v.wrap(err)
}

func (v *vm) detachDisks(ctx context.Context, idPrefix string) error {
	var devices []struct{ Name, Type string }
	if err := v.monitor.execute(ctx, "qom-list", map[string]string{"path": "/machine/peripheral"}, &devices); err != nil {
		return err
	}
	var errs []error
	for _, d := range devices {
		if strings.HasPrefix(d.Name, idPrefix) && d.Type == "child<virtio-blk-pci>" {
			errs = append(errs, v.unplug(ctx, d.Name))
		}
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := v.monitor.execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, nodePrefix+idPrefix) {
			if err := v.monitor.execute(ctx, "blockdev-del", map[string]string{"node-name": n.Name}, nil); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// unplug asks for one device and waits until the guest has let go of it.
func (v *vm) unplug(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, unplugTimeout)
	defer cancel()
	gone := v.unplugs.expect(id)
	defer v.unplugs.forget(id)
	err := v.monitor.execute(ctx, "device_del", map[string]string{"id": id}, nil)
	if err != nil && !strings.Contains(err.Error(), "already in the process of unplug") {
		return err
	}
	select {
	case <-gone:
		return nil
	case <-v.monitor.done:
		return errQMPClosed
	case <-ctx.Done():
		return fmt.Errorf("device %s: the guest does not let go of it: %w", id, ctx.Err())
	}
}

// deletedDevice reads which device an event DEVICE_DELETED is about; devices
// within another have no id.
func deletedDevice(e qmpEvent) string {
	var data struct {
		Device string `json:"device"`
	}
	_ = json.Unmarshal(e.Data, &data) // QEMU's own words; without an id it is about nobody who waits
	return data.Device
}
