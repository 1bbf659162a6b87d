// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// programs is where the agent's program is in the image, and containerInit below it the directory with that of containers.
const (
	programs      = "/sbin"
	containerInit = programs + "/container"
)

// UseInit makes libcontainer start the small program bulkhead-init for the processes of containers, not the agent's
// own. libcontainer always starts the program that it is itself, in a copy that containers cannot write to: it looks up the
// path of /proc/self/exe, and makes an overlay of the directory. From here on that path leads to the other program, which the
// image has under the same name in a directory of its own; what runs already is not touched by it.
func UseInit() error {
	if err := unix.Mount(containerInit, programs, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s, which has the init of containers, on %s (build the image with deploy/guest/build-image AGENT OUTDIR INIT): %w", containerInit, programs, err)
	}
	return nil
}
