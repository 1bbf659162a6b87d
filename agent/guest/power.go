// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"golang.org/x/sys/unix"
)

// Off ends the machine after writing everything back. It asks for a restart:
// the hypervisor runs with -no-reboot, and unlike power-off a restart needs no
// support from firmware. It returns only if the kernel refuses.
func Off() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
