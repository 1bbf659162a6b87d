// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bulkhead-ksm-worker runs the ksm service as a process of its own.
package main

import (
	"context"

	"bulkhead/bus"
	"bulkhead/bus/standalone"
	"bulkhead/bus/version"
	ksmworker "bulkhead/ksm-worker"
)

func main() {
	standalone.MainOnBus("bulkhead-ksm-worker", func(ctx context.Context, conn *bus.Conn, env standalone.Env) error {
		return ksmworker.Run(ctx, ksmworker.Deps{
			Conn: conn, RunDir: env.Config.Host.RunDir, Config: env.Config.KSM, Log: env.Log, Version: version.Version, Serving: env.Ready,
		})
	})
}
