// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	"bulkhead/deploy/daemon"
	vmv1 "bulkhead/proto/vm/v1"
)

type options struct {
	n        int
	only     *regexp.Regexp
	out      string
	quick    bool
	vmConfig string
}

// measures are the groups of numbers, in the order in which they are taken.
// Memory comes first, while the machine is still quiet.
var measures = []func(context.Context, *bench) error{
	measureMemory, measureRun, measureExec, measureState, measureEcho, measureStdout, measureStdin,
}

// bench is one run of the program.
type bench struct {
	options
	dir     string // everything of this run lives below it
	bundles bundles
	facts   facts
	results *results

	runc     *runtime
	bulkhead *runtime // nil when nothing of it is wanted
	daemon   *daemon.Daemon
	conn     *bus.Conn
}

// bulkheadNames are what is measured of bulkhead alone; everything else has a
// runc_ twin.
var (
	twinNames     = []string{"run_true_cold", "create", "start", "end", "delete", "exec_true", "state", "echo_rtt", "stdout_rate", "stdin_rate"}
	bulkheadNames = []string{"mem_per_vm", "vm_pss", "relay_pss", phasePrefix}
)

func newBench(ctx context.Context, o options) (_ *bench, err error) {
	b := &bench{options: o, results: newResults(o.only)}
	b.facts = hostFacts(ctx)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the reaper of containers: %w", err)
	}
	// Short: sockets live below it, whose paths the kernel limits to 107 bytes.
	if b.dir, err = os.MkdirTemp("/run", "bh-bench-"); err != nil {
		return nil, fmt.Errorf("make the benchmark's directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.bundles, err = makeBundles(b.dir); err != nil {
		return nil, err
	}
	path, err := exec.LookPath("runc")
	if err != nil {
		return nil, fmt.Errorf("runc is what bulkhead is compared with; install the Debian package runc (make packages does): %w", err)
	}
	b.runc = &runtime{prefix: runcPrefix, binary: path, global: []string{"--root", filepath.Join(b.dir, "runc")}}
	if slices.ContainsFunc(slices.Concat(twinNames, bulkheadNames), o.only.MatchString) {
		if err := b.startBulkhead(ctx); err != nil {
			return nil, err
		}
	}
	return b, b.warmUp(ctx)
}

// startBulkhead starts a daemon of the benchmark's own.
func (b *bench) startBulkhead(ctx context.Context) error {
	build := os.Getenv("BULKHEAD_BUILD")
	if build == "" {
		return errors.New("BULKHEAD_BUILD must name the build directory; use make bench")
	}
	b.progress("starting bulkheadd")
	runDir := filepath.Join(b.dir, "run")
	ctx, cancel := context.WithTimeout(ctx, daemonTime)
	defer cancel()
	var err error
	b.daemon, err = daemon.Start(ctx, daemon.Options{Build: build, Dir: b.dir, RunDir: runDir, Host: "bench", VM: b.vmConfig + "\n"})
	if err != nil {
		return err
	}
	b.bulkhead = &runtime{
		binary: filepath.Join(build, "bin", "bulkhead"),
		global: []string{"--config", b.daemon.Config, "--root", filepath.Join(b.dir, "containers")},
		hint:   b.daemon.LastLog,
	}
	b.conn, err = bus.Dial(ctx, runDir, "bench")
	return err
}

// warmUp starts a container of each runtime that is not measured: it brings what
// a first start reads into the page cache, and tells the facts of the VM.
func (b *bench) warmUp(ctx context.Context) error {
	for _, rt := range []*runtime{b.bulkhead, b.runc} {
		if rt == nil {
			continue
		}
		b.progress("warming up %s", rt.binary)
		c, err := rt.launch(ctx, "warm-up", b.bundles.sleep, stdio{})
		if err != nil {
			return err
		}
		if rt == b.bulkhead {
			err = b.vmFacts(ctx)
		}
		if err := errors.Join(err, c.remove(ctx)); err != nil {
			return err
		}
	}
	return nil
}

const daemonTime = time.Minute

func (b *bench) vmFacts(ctx context.Context) error {
	list, err := b.list(ctx)
	if err != nil {
		return err
	}
	if len(list.Sandboxes) != 1 {
		return fmt.Errorf("%d VMs run for one container", len(list.Sandboxes))
	}
	b.facts.vm = list.Sandboxes[0]
	return nil
}

func (b *bench) list(ctx context.Context) (*vmv1.ListReply, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	return bus.Call[vmv1.ListReply](ctx, b.conn, b.conn.Subject("vm", "list"), &vmv1.ListRequest{})
}

// runtimes are those of which at least one of the names is wanted.
func (b *bench) runtimes(names ...string) []*runtime {
	var wanted []*runtime
	for _, rt := range []*runtime{b.bulkhead, b.runc} {
		if rt == nil {
			continue
		}
		for _, name := range names {
			if b.only.MatchString(rt.prefix + name) {
				wanted = append(wanted, rt)
				break
			}
		}
	}
	return wanted
}

// samples is how many to take: what the command line says, else the number given.
func (b *bench) samples(n int) int {
	switch {
	case b.n > 0:
		return b.n
	case b.quick:
		return 3
	}
	return n
}

// progress tells a person at a terminal what is going on.
func (b *bench) progress(format string, args ...any) {
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		fmt.Fprintf(os.Stderr, "\r\x1b[K"+format, args...)
	}
}

// close stops the daemon, removes the directory and looks whether anything is left.
func (b *bench) close() error {
	var errs []error
	if b.conn != nil {
		b.conn.Close()
	}
	if b.daemon != nil {
		errs = append(errs, b.daemon.Stop())
	}
	errs = append(errs, endChildren())
	errs = append(errs, os.RemoveAll(b.dir))
	return errors.Join(errs...)
}
