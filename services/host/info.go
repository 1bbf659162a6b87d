// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"bulkhead/bus"
	"bulkhead/bus/config"
	"bulkhead/bus/server"
	"bulkhead/bus/version"
	hostv1 "bulkhead/proto/host/v1"
)

const drainTime = 10 * time.Second

// hostService answers what this host is.
func hostService(srv *server.Server) component {
	return func(ctx context.Context, conn *bus.Conn, cfg *config.Config, log hclog.Logger, serving func()) error {
		svc, err := bus.NewService(ctx, conn, bus.ServiceConfig{
			Name: "host", Version: version.Version, Description: "this host and the services in its daemon", Log: log,
		})
		if err != nil {
			return err
		}
		err = bus.Handle(svc, "info", func(context.Context, *hostv1.InfoRequest) (*hostv1.InfoReply, error) {
			kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
			if err != nil {
				return nil, err
			}
			reply := &hostv1.InfoReply{
				Host: cfg.Host.ID, Version: version.Version, Pid: int32(os.Getpid()),
				Kernel: strings.TrimSpace(string(kernel)), RunDir: cfg.Host.RunDir,
				Services: cfg.Host.Services, OperatorUrl: srv.URL(),
			}
			if reply.OperatorUrl != "" {
				reply.NatsContext = server.ContextName
			}
			return reply, nil
		})
		if err != nil {
			return errors.Join(err, svc.Stop(ctx))
		}
		serving()
		return svc.ServeUntil(ctx, drainTime)
	}
}
