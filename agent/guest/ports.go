// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"fmt"
)

// FindPort returns the device of the virtio-serial port with this name. The
// host announces names after the kernel has booted, so it waits for it until
// the context ends.
func FindPort(ctx context.Context, name string) (string, error) {
	dev, err := awaitDevice(ctx, "/sys/class/virtio-ports", "name", name)
	if err != nil {
		return "", fmt.Errorf("waiting for the virtio-serial port %q: %w", name, err)
	}
	return dev, nil
}
