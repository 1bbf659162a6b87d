// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bulkhead-network runs the net service as a process of its own.
package main

import (
	"context"

	"bulkhead/bus"
	"bulkhead/bus/standalone"
	"bulkhead/bus/version"
	"bulkhead/services/network"
)

func main() {
	standalone.MainOnBus("bulkhead-network", func(ctx context.Context, conn *bus.Conn, env standalone.Env) error {
		env.AllowFiles(network.FilesOfVM)
		return network.Run(ctx, network.Deps{
			Conn: conn, RunDir: env.Config.Host.RunDir, Config: env.Config.Network,
			Log: env.Log, Version: version.Version, Serving: env.Ready,
		})
	})
}
