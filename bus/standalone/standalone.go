// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package standalone is what the main functions of services share: flags,
// configuration, logging, signals and readiness. A service that runs as a process
// of its own is Main with its Run; bulkheadd uses the same pieces.
//
// It imports bus and its rooms. The invariant to remember: nothing here decides
// anything for a service; a service behaves the same however it is started.
package standalone

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"bulkhead/bus"
	"bulkhead/bus/config"
	"bulkhead/bus/version"
)

// Env is what a service gets from its surroundings.
type Env struct {
	Config *config.Config
	Log    hclog.Logger
	// Ready tells the service manager that the service answers.
	Ready func()
}

// Main runs body until it ends or a signal ends it, and exits. name is the
// program's.
func Main(name string, body func(context.Context, Env) error) {
	os.Exit(run(name, os.Args[1:], body))
}

// readyTime bounds the bus's confirmation that it knows a service.
const readyTime = 5 * time.Second

// MainOnBus is Main for a service that meets the daemon's bus as a client.
func MainOnBus(name string, body func(context.Context, *bus.Conn, Env) error) {
	Main(name, func(ctx context.Context, env Env) error {
		conn, err := bus.Dial(ctx, env.Config.Host.RunDir, name, bus.Persistent(), bus.WithLog(env.Log))
		if err != nil {
			return err
		}
		defer conn.Close()
		notify := env.Ready
		env.Ready = func() {
			// It answers once the bus has its subscriptions. Without a bus nobody
			// asks; the connection brings them along when it comes back.
			if err := conn.NATS().FlushTimeout(readyTime); err != nil {
				env.Log.Warn("ready, but the bus does not confirm it", "error", err)
			}
			notify()
		}
		return body(ctx, conn, env)
	})
}

func run(name string, args []string, body func(context.Context, Env) error) int {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	configPath := flags.String("config", "", "configuration file (default $"+config.EnvPath+", else "+config.DefaultPath+")")
	showVersion := flags.Bool("version", false, "print the version")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *showVersion {
		fmt.Printf("%s version %s\ncommit: %s\n", name, version.Version, version.Commit)
		return 0
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "%s: unexpected argument %q; %s --help lists the flags\n", name, flags.Arg(0), name)
		return 2
	}
	cfg, err := config.Load(*configPath)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	log := hclog.New(&hclog.LoggerOptions{
		Name: name, Level: hclog.LevelFromString(cfg.Host.LogLevel), Output: os.Stderr,
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := body(ctx, Env{Config: cfg, Log: log, Ready: notifyReady}); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}
