// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo starts a host daemon of its own, runs a busybox container in a VM
// through the OCI command line, and prints what happened. It removes all it made.
//
// usage: demo BUILD_DIRECTORY
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo BUILD_DIRECTORY")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// wholeDemo bounds the demo: minutes beyond what a slow machine needs.
const wholeDemo = 3 * time.Minute

func run(ctx context.Context, build string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, wholeDemo)
	defer cancel()
	if os.Geteuid() != 0 {
		return fmt.Errorf("run it as root: containers need mounts and cgroups")
	}
	build, err = filepath.Abs(build)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/run", "bulkhead-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	defer os.RemoveAll(dir)

	step("starting the host daemon (embedded NATS server, vm worker, network and ksm services)")
	began := time.Now()
	h, err := startHost(ctx, build, dir)
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := h.stop(); err == nil {
			err = stopErr
		}
	}()
	done(began)

	rtt, err := h.busRoundTrip(ctx)
	if err != nil {
		return err
	}
	bundle, err := makeBundle(dir)
	if err != nil {
		return err
	}
	c, err := runContainer(ctx, h, bundle)
	if err != nil {
		return err
	}
	report(c, rtt)
	return nil
}

func step(text string) { fmt.Printf("  %-86s", text+" …") }

func done(since time.Time) { fmt.Printf("%6.2f s\n", time.Since(since).Seconds()) }
