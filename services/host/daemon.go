// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"bulkhead/bus"
	"bulkhead/bus/config"
	"bulkhead/bus/server"
	"bulkhead/bus/standalone"
	"bulkhead/bus/version"
	ksmworker "bulkhead/ksm-worker"
	"bulkhead/services/network"
	vmworker "bulkhead/vm-worker"
)

// component is a service as the daemon runs it: serving is called once it
// answers.
type component func(ctx context.Context, conn *bus.Conn, cfg *config.Config, log hclog.Logger, serving func()) error

// components are the services the daemon can hold, by the name they have on the
// bus and in the configuration.
var components = map[string]component{
	"vm":  runVM,
	"net": runNetwork,
	"ksm": runKSM,
}

// FilesOfVM is how many files the daemon holds open of each VM when it has these services.
func FilesOfVM(services []string) int {
	files := server.FilesOfVM
	for _, name := range services {
		files += map[string]int{"vm": vmworker.FilesOfVM, "net": network.FilesOfVM}[name]
	}
	return files
}

// confirmTime bounds the bus's confirmation of a service in its own process.
const confirmTime = 5 * time.Second

// Run brings up the bus and the configured services and serves until ctx ends or
// a service fails. Whatever was started has ended when it returns.
func Run(ctx context.Context, env standalone.Env) (err error) {
	cfg, log := env.Config, env.Log
	srv, err := server.Start(ctx, server.Options{
		Host: cfg.Host.ID, RunDir: cfg.Host.RunDir,
		Operator: cfg.Host.Operator, OperatorAddr: cfg.Host.OperatorAddr,
		Log: log.Named("bus"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Close()) }()
	if path := srv.ContextPath(); path != "" {
		log.Info("operators may connect", "url", srv.URL(), "nats_context", server.ContextName, "context_file", path)
	}

	names := append([]string{"host"}, cfg.Host.Services...)
	serving := make(chan struct{}, len(names))
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range names {
		run := components[name]
		if name == "host" {
			run = hostService(srv)
		}
		group.Go(func() error {
			if err := launch(ctx, srv, name, run, cfg, log.Named(name), func() { serving <- struct{}{} }); err != nil {
				return fmt.Errorf("service %s: %w", name, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		for range names {
			select {
			case <-serving:
			case <-ctx.Done():
				return nil
			}
		}
		log.Info("serving", "host", cfg.Host.ID, "services", cfg.Host.Services, "run_dir", cfg.Host.RunDir)
		env.Ready()
		return nil
	})
	return group.Wait()
}

// launch runs one service on a connection of its own.
func launch(ctx context.Context, srv *server.Server, name string, run component, cfg *config.Config, log hclog.Logger, serving func()) error {
	conn, err := srv.ConnInProcess("bulkheadd " + name)
	if err != nil {
		return err
	}
	defer conn.Close()
	return run(ctx, conn, cfg, log, sync.OnceFunc(func() {
		// A service answers once the bus has its subscriptions.
		if err := conn.NATS().FlushTimeout(confirmTime); err != nil {
			log.Warn("the bus does not confirm a service", "service", name, "error", err)
		}
		serving()
	}))
}

func runVM(ctx context.Context, conn *bus.Conn, cfg *config.Config, log hclog.Logger, serving func()) error {
	driver, err := vmworker.NewDriver(cfg.VM, log)
	if err != nil {
		return err
	}
	return vmworker.Run(ctx, vmworker.Deps{
		Conn: conn, RunDir: cfg.Host.RunDir, Config: cfg.VM, Driver: driver,
		Log: log, Version: version.Version, Serving: serving,
	})
}

func runNetwork(ctx context.Context, conn *bus.Conn, cfg *config.Config, log hclog.Logger, serving func()) error {
	return network.Run(ctx, network.Deps{
		Conn: conn, RunDir: cfg.Host.RunDir, Config: cfg.Network,
		Log: log, Version: version.Version, Serving: serving,
	})
}

func runKSM(ctx context.Context, conn *bus.Conn, cfg *config.Config, log hclog.Logger, serving func()) error {
	return ksmworker.Run(ctx, ksmworker.Deps{
		Conn: conn, RunDir: cfg.Host.RunDir, Config: cfg.KSM, Log: log, Version: version.Version, Serving: serving,
	})
}
