// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// refuseDevices refuses device nodes that no driver of the guest answers: a
// node made from the host's numbers would be a dead or, worse, another device.
func refuseDevices(devices []specs.LinuxDevice) error {
	for _, d := range devices {
		var class string
		switch d.Type {
		case "c", "u":
			class = "char"
		case "b":
			class = "block"
		case "p":
			continue
		default:
			return fmt.Errorf("%w: linux.devices %q: type %q is unknown", ErrInvalid, d.Path, d.Type)
		}
		if _, err := os.Stat(fmt.Sprintf("/sys/dev/%s/%d:%d", class, d.Major, d.Minor)); err != nil {
			return fmt.Errorf("%w: linux.devices %q: the guest has no %s device %d:%d", ErrInvalid, d.Path, class, d.Major, d.Minor)
		}
	}
	return nil
}
