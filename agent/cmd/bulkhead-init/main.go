// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bulkhead-init is what every process of a container is until it is the container's program: libcontainer's
// init, and nothing else, as it is started for each of them (docs/performance.md). In the guest it has the agent's name
// (agent/guest/init.go).
package main

import (
	"fmt"
	"os"

	// Joins the namespaces of the container, before the Go runtime starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"

	// Is the init, and never comes back, when started as one.
	_ "bulkhead/agent/reexec"
)

func main() {
	fmt.Fprintln(os.Stderr, "bulkhead-init is started by the agent for the processes of containers, and does nothing else")
	os.Exit(2)
}
