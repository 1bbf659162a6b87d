// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command netbench measures the network of a VM container with runc beside it: each
// has a network namespace with one end of a veth, made in the same way, and at the
// other end of it, in a namespace of its own, is the one who measures. Of
// Bulkhead there is a container for each model by which a link is joined to a VM.
// All run at the same time and are measured in turns, one at a time.
//
// What is measured, with test/netprobe at both ends:
//
//   - tcp_out, tcp_in: one TCP connection, out of the container or into it, as fast as it goes;
//   - udp_out, udp_in: datagrams of 64 bytes that arrive, when they are sent as fast as it goes;
//   - rtt: one byte there and back by TCP; the median of some hundred is a sample;
//   - requests: HTTP answers a second of a server in the container, to 16 clients.
//
// It imports test/e2e/host and nothing of the product. The invariant: it
// ends, and when it ends, whatever happened, nothing it started is left.
//
// usage: BULKHEAD_BUILD=DIR netbench [-n N] [-for DURATION] [-only REGEXP] [-models LIST] [-out FILE]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"bulkhead/test/e2e/host"
)

type options struct {
	n        int
	duration time.Duration
	only     *regexp.Regexp
	models   []string
	out      string
	hold     bool
}

// wholeBench bounds the program: several times what it needs on a slow machine.
const wholeBench = 30 * time.Minute

func main() {
	host.Main()
	var o options
	var only, models string
	flag.IntVar(&o.n, "n", 5, "samples of each measure")
	flag.DurationVar(&o.duration, "for", 2*time.Second, "how long a sample takes")
	flag.StringVar(&only, "only", "", "measure only what matches this `regexp`")
	flag.StringVar(&models, "models", "tc,macvtap,bridge", "models of Bulkhead, with commas between; empty: runc alone")
	flag.StringVar(&o.out, "out", "", "write the numbers as JSON to this `file`")
	flag.BoolVar(&o.hold, "hold", false, "measure nothing, but wait for ^C with all that is set up, to look at it")
	flag.Parse()
	o.models = strings.FieldsFunc(models, func(r rune) bool { return r == ',' })
	var err error
	if o.only, err = regexp.Compile(only); err != nil || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "netbench: -only takes a regular expression, and there are no arguments:", errors.Join(err))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, wholeBench, fmt.Errorf("the benchmark took longer than %s", wholeBench))
	defer cancel()
	if os.Geteuid() != 0 {
		return errors.New("run it as root: it makes network namespaces and containers")
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if o.hold {
		b.describe(os.Stdout)
		<-ctx.Done()
		return nil
	}
	results, err := b.measure(ctx)
	if err != nil {
		return err
	}
	results.print(os.Stdout)
	if o.out != "" {
		return results.write(o.out)
	}
	return nil
}
