// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures what a user of Bulkhead waits for and pays, with runc
// beside it where runc does the same thing, and prints a table with the facts of
// the machine it ran on. All are driven as an engine drives them: the
// OCI command line with a pid-file, this process being the subreaper that adopts
// the container's host process and reaps it to learn the end. Samples of the
// runtimes alternate, so that a noisy minute hits both.
//
// What each number is stands below the table (report.go); those of VMs in numbers
// are taken of one burst of idle containers.
//
// The median and the 95th percentile (nearest rank) are of single samples. MB is
// 10^6 bytes.
//
// What could be measured is printed and written also when something else could not;
// the exit status is then not zero, and stderr says what is missing.
//
// It imports deploy/daemon, bus and proto, and no service. The invariant: it ends,
// and when it ends, whatever happened, nothing it started is left.
//
// usage: BULKHEAD_BUILD=DIR bench [-n N] [-vms N] [-live N] [-only REGEXP] [-out FILE] [-chart SVG] [-quick] [-vm-config TOML]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

// wholeBench bounds the program: several times what it needs on a slow machine.
const wholeBench = 60 * time.Minute

func main() {
	var o options
	var only string
	flag.IntVar(&o.n, "n", 0, "samples of each timed measure (default: what each needs)")
	flag.StringVar(&only, "only", "", "measure only names that match this `regexp`")
	flag.IntVar(&o.vms, "vms", 50, "idle containers for what is measured of many at once")
	flag.IntVar(&o.live, "live", 0, "also start this many VMs and ask each to exec (minutes; stops where memory ends)")
	flag.StringVar(&o.chart, "chart", "", "draw the phases of a start into this SVG `file`")
	flag.StringVar(&o.out, "out", "", "write the numbers as JSON to this `file`")
	flag.BoolVar(&o.quick, "quick", false, "few and small samples: to see that it works, not for numbers")
	flag.StringVar(&o.vmConfig, "vm-config", "", "`lines` for the [vm] section of the daemon's configuration")
	flag.Parse()
	var err error
	if o.only, err = regexp.Compile(only); err != nil || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "bench: -only takes a regular expression, and there are no arguments:", errors.Join(err))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, wholeBench, fmt.Errorf("the benchmark took longer than %s", wholeBench))
	defer cancel()
	if os.Geteuid() != 0 {
		return errors.New("run it as root: containers need mounts and cgroups")
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	err = b.measure(ctx)
	b.results.print(os.Stdout, b.facts)
	if o.chart != "" {
		err = errors.Join(err, b.writeChart(o.chart))
	}
	if o.out != "" {
		err = errors.Join(err, b.results.write(o.out))
	}
	return err
}
