// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bulkhead-vm-worker runs the vm service as a process of its own.
package main

import (
	"context"

	"bulkhead/bus"
	"bulkhead/bus/standalone"
	"bulkhead/bus/version"
	vmworker "bulkhead/vm-worker"
	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/jail"
)

func main() {
	jail.Main()       // returns unless this process is to become a jailed hypervisor
	hostcgroup.Main() // returns unless this process is to be the victim of an OOM report
	standalone.MainOnBus("bulkhead-vm-worker", func(ctx context.Context, conn *bus.Conn, env standalone.Env) error {
		env.AllowFiles(vmworker.FilesOfVM)
		driver, err := vmworker.NewDriver(env.Config.VM, env.Log)
		if err != nil {
			return err
		}
		return vmworker.Run(ctx, vmworker.Deps{
			Conn: conn, RunDir: env.Config.Host.RunDir, Config: env.Config.VM, Driver: driver,
			Log: env.Log, Version: version.Version, Serving: env.Ready,
		})
	})
}
