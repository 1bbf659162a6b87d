// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const portClass = "/sys/class/virtio-ports"

// FindPort returns the device of the virtio-serial port with this name. The
// host announces names after the kernel has booted, so it waits for it until
// the context ends.
func FindPort(ctx context.Context, name string) (string, error) {
	dev, err := awaitDevice(ctx, func() (string, error) { return scanPorts(portClass, name) })
	if err != nil {
		return "", fmt.Errorf("waiting for the virtio-serial port %q: %w", name, err)
	}
	return dev, nil
}

func scanPorts(class, name string) (string, error) {
	entries, err := os.ReadDir(class)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("listing the virtio-serial ports: %w", err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		// A port has no name until the host has told it.
		if err == nil && strings.TrimSpace(string(data)) == name {
			return filepath.Join("/dev", e.Name()), nil
		}
	}
	return "", nil
}
