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

// confirmTime bounds the bus's confirmation of a service in its own process.
const confirmTime = 5 * time.Second

// Run brings up the bus and the configured services and serves until ctx ends or
// a service fails.
func Run(ctx context.Context, env standalone.Env) (err error) {
	cfg, log := env.Config, env.Log
	bus, err := server.Start(ctx, server.Options{
		Host: cfg.Host.ID, RunDir: cfg.Host.RunDir,
		Operator: cfg.Host.Operator, OperatorAddr: cfg.Host.OperatorAddr,
		Log: log.Named("bus"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Close()) }()
	if path := bus.ContextPath(); path != "" {
		log.Info("operators may connect", "url", bus.URL(), "nats_context", server.ContextName, "context_file", path)
	}

	group, ctx := errgroup.WithContext(ctx)
	var serving sync.WaitGroup
	launch := func(name string, run component) error {
		conn, err := bus.ConnInProcess("bulkheadd " + name)
		if err != nil {
			return err
		}
		serving.Add(1)
		group.Go(func() error {
			defer conn.Close()
			answers := sync.OnceFunc(func() {
				// A service answers once the bus has its subscriptions.
				if err := conn.NATS().FlushTimeout(confirmTime); err != nil {
					log.Warn("the bus does not confirm a service", "service", name, "error", err)
				}
				serving.Done()
			})
			if err := run(ctx, conn, cfg, log.Named(name), answers); err != nil {
				return fmt.Errorf("service %s: %w", name, err)
			}
			return nil
		})
		return nil
	}
	if err := launch("host", hostService(bus)); err != nil {
		return err
	}
	for _, name := range cfg.Host.Services {
		if err := launch(name, components[name]); err != nil {
			return err
		}
	}
	go func() { // ends with the last service's first answer, or with the process
		serving.Wait()
		log.Info("serving", "host", cfg.Host.ID, "services", cfg.Host.Services, "run_dir", cfg.Host.RunDir)
		env.Ready()
	}()
	return group.Wait()
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

func runNetwork(ctx context.Context, conn *bus.Conn, _ *config.Config, log hclog.Logger, serving func()) error {
	return network.Run(ctx, network.Deps{Conn: conn, Log: log, Version: version.Version, Serving: serving})
}

func runKSM(ctx context.Context, conn *bus.Conn, _ *config.Config, log hclog.Logger, serving func()) error {
	return ksmworker.Run(ctx, ksmworker.Deps{Conn: conn, Log: log, Version: version.Version, Serving: serving})
}
