// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"fmt"
	"os"
)

// FindDisk returns the device node of the disk with this serial number. The
// host has plugged it in just now, so it waits for it until the context ends.
func FindDisk(ctx context.Context, serial string) (string, error) {
	dev, err := awaitDevice(ctx, "/sys/block", "serial", serial)
	if err != nil {
		return "", fmt.Errorf("waiting for the disk %q: %w", serial, err)
	}
	return dev, nil
}

// WeighDisk has the kernel share a disk's time by the weights of cgroups
// (Documentation/admin-guide/cgroup-v2.rst, io.cost.qos): weights mean nothing
// on a disk until then.
func WeighDisk(major, minor int64) error {
	line := fmt.Sprintf("%d:%d enable=1 ctrl=auto", major, minor)
	if err := os.WriteFile("/sys/fs/cgroup/io.cost.qos", []byte(line), 0); err != nil {
		return fmt.Errorf("sharing disk %d:%d by weight: %w", major, minor, err)
	}
	return nil
}
