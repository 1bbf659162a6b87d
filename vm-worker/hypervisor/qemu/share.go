// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"fmt"
)

// shareFsdev is the file system that every share shows.
const shareFsdev = "share"

// AttachShare implements hypervisor.VM. What is plugged in is asked of QEMU, so that an adopted VM needs no other record of
// it; the device has its tag as its id.
func (v *vm) AttachShare(ctx context.Context, tag string) error {
	if !validDeviceID(tag) {
		return v.wrap(fmt.Errorf("tag %q of a share is not a letter and up to 19 letters, digits and '-'", tag))
	}
	var devices []struct{ Name string }
	if err := v.monitor.execute(ctx, "qom-list", map[string]string{"path": "/machine/peripheral"}, &devices); err != nil {
		return v.wrap(fmt.Errorf("share %s: %w", tag, err))
	}
	for _, d := range devices {
		if d.Name == tag {
			return nil
		}
	}
	err := v.monitor.execute(ctx, "device_add", map[string]any{
		"driver": "virtio-9p-pci", "id": tag, "bus": hotplugBus, "disable-legacy": "on", "fsdev": shareFsdev, "mount_tag": tag,
	}, nil)
	if err != nil {
		return v.wrap(fmt.Errorf("share %s: %w", tag, err))
	}
	return nil
}
