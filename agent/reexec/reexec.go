// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package reexec is the short road of the agent's binary: libcontainer starts
// every container process by running the binary again as "init", and that
// process must not pay for the bus, the codecs and the loggers of PID 1.
//
// Go initialises packages in the order of their import paths as soon as all
// their imports are ready, so a package that imports libcontainer and nothing
// else runs before those of the rest that come after libcontainer in that order. The one invariant:
// this package imports only the standard library and libcontainer, and main imports it.
package reexec

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
	// The C constructor of nsenter joins namespaces before the Go runtime starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		// This thread becomes the container's program. That it keeps its slack is no reason not to.
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
		// Never returns: it becomes the container's program or exits.
		libcontainer.Init()
	}
}
