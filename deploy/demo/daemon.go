// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"path/filepath"
	"time"

	"bulkhead/bus"
	"bulkhead/deploy/daemon"
	busv1 "bulkhead/proto/bus/v1"
)

// host is the demo's own daemon and how its containers are reached.
type host struct {
	*daemon.Daemon
	cli  string // the bulkhead binary
	root string // --root of the demo's containers
	conn *bus.Conn
}

// startHost starts the daemon on a run directory below dir.
func startHost(ctx context.Context, build, dir string) (*host, error) {
	runDir := filepath.Join(dir, "run")
	d, err := daemon.Start(ctx, daemon.Options{Build: build, Dir: dir, RunDir: runDir, Host: "demo"})
	if err != nil {
		return nil, err
	}
	h := &host{Daemon: d, cli: filepath.Join(build, "bin", "bulkhead"), root: filepath.Join(dir, "containers")}
	h.conn, err = bus.Dial(ctx, runDir, "demo")
	if err != nil {
		_ = h.stop()
		return nil, err
	}
	return h, nil
}

// busRoundTrip measures one request over the bus: the best of a few, since what
// is asked is what the bus itself costs.
func (h *host) busRoundTrip(ctx context.Context) (time.Duration, error) {
	best := time.Hour
	for range 9 {
		began := time.Now()
		if _, err := bus.Call[busv1.ServiceStatus](ctx, h.conn, h.conn.Subject("vm", "status"), &busv1.StatusRequest{}); err != nil {
			return 0, err
		}
		best = min(best, time.Since(began))
	}
	return best, nil
}

func (h *host) stop() error {
	if h.conn != nil {
		h.conn.Close()
	}
	return h.Stop()
}
