// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bulkheadd is the host daemon: the bus and every service in one process.
package main

import (
	"context"

	"bulkhead/bus/standalone"
	"bulkhead/services/host"
	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/jail"
)

func main() {
	jail.Main()       // returns unless this process is to become a jailed hypervisor
	hostcgroup.Main() // returns unless this process is to be the victim of an OOM report
	standalone.Main("bulkheadd", func(ctx context.Context, env standalone.Env) error {
		env.AllowFiles(host.FilesOfVM(env.Config.Host.Services))
		return host.Run(ctx, env)
	})
}
