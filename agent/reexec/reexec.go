// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package reexec is what libcontainer starts for every process of a container: the program that it is itself, with
// the argument "init". In a guest that is bulkhead-init, which has this package and nothing else. The agent has it too: where the
// kernel cannot make an overlay, libcontainer starts a copy of the agent.
//
// Go initialises packages in the order of their import paths as soon as all
// their imports are ready, so a package that imports libcontainer and nothing
// else runs before those of the agent that come after libcontainer in that order. The one invariant:
// this package imports only the standard library, libcontainer and what is no Go, and main imports it, and nsenter beside it:
// the C constructor of that one joins namespaces before the Go runtime starts, and agent/timers says why not from here.
package reexec

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	// Makes the timers of the agent and of starting containers coarse.
	_ "bulkhead/agent/timers"
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		// This thread becomes the container's program. That it keeps its slack is no reason not to.
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
		// Never returns: it becomes the container's program or exits.
		libcontainer.Init()
	}
}
