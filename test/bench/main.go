// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures what a user of Bulkhead waits for and pays, with runc
// beside it where runc does the same thing, and prints a table with the facts of
// the machine it ran on. Both runtimes are driven as an engine drives them: the
// OCI command line with a pid-file, this process being the subreaper that adopts
// the container's host process and reaps it to learn the end. Samples of the two
// runtimes alternate, so that a noisy minute hits both.
//
// What is measured:
//
//   - run_true_cold: create, start, wait for the end, delete of /bin/true with
//     /dev/null as standard streams; from before "create" to after "delete" returned.
//     create, start, end and delete are its parts.
//   - exec_true: "exec --detach" of /bin/true in a running container; from before the
//     command to the end of its process.
//   - state: "state" from its exec to its exit.
//   - echo_rtt: one byte written to the pty master of a container with a terminal,
//     until the echo of the container's tty comes back.
//   - stdout_rate, stdin_rate: 256 MiB by "dd bs=64k" through the pipe that is the
//     container's stdout, or stdin; from the first byte to the last one counted.
//   - mem_per_vm: what MemAvailable fell by, divided by the 10 idle containers that
//     were started; vm_pss and relay_pss are the PSS of their QEMUs and relays.
//   - phase_*: parts of a cold start by the worker's own record of those containers;
//     agent_ready and vm_boot both count from the start of QEMU.
//
// The median and the 95th percentile (nearest rank) are of single samples. MB is
// 10^6 bytes.
//
// It imports deploy/daemon, bus and proto, and no service. The invariant: it ends,
// and when it ends, whatever happened, nothing it started is left.
//
// usage: BULKHEAD_BUILD=DIR bench [-n N] [-only REGEXP] [-out FILE] [-quick] [-vm-config TOML]
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
const wholeBench = 30 * time.Minute

func main() {
	var o options
	var only string
	flag.IntVar(&o.n, "n", 0, "samples of each timed measure (default: what each needs)")
	flag.StringVar(&only, "only", "", "measure only names that match this `regexp`")
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
	for _, m := range measures {
		if err = m(ctx, b); err != nil {
			break
		}
	}
	b.progress("")
	b.results.print(os.Stdout, b.facts)
	if err != nil {
		return err // and the file keeps the numbers of a run that was whole
	}
	if o.out != "" {
		return b.results.write(o.out)
	}
	return nil
}
