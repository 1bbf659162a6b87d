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
	vms      int
	live     int
	only     *regexp.Regexp
	out      string
	chart    string
	quick    bool
	vmConfig string
}

// measure is a group of numbers that are taken together.
type measure struct {
	name string
	take func(context.Context, *bench) error
	time time.Duration // which it may need at most
}

// measureTime is several times what a measure needs on a slow machine.
const measureTime = 10 * time.Minute

// measures are in the order in which they are taken. Memory comes first, while the
// machine is still quiet.
var measures = []measure{
	{"idle VMs in numbers", measureBurst, measureTime},
	{"memory of the others", measureMemoryOfOthers, measureTime},
	{"phases", measurePhases, measureTime},
	{"run_true", measureRun, measureTime},
	{"exec_true", measureExec, measureTime},
	{"state", measureState, measureTime},
	{"echo_rtt", measureEcho, measureTime},
	{"stdout_rate", measureStdout, measureTime},
	{"stdin_rate", measureStdin, measureTime},
	{"vms_live", measureLive, wholeBench},
}

// measure takes all numbers. One that cannot be taken does not keep the others from it.
func (b *bench) measure(ctx context.Context) error {
	var errs []error
	for _, m := range measures {
		began := time.Now()
		taking, cancel := context.WithTimeoutCause(ctx, m.time, fmt.Errorf("it took longer than %s", m.time))
		if err := m.take(taking, b); err != nil {
			errs = append(errs, fmt.Errorf("not all of %q could be measured: %w", m.name, err))
		}
		cancel()
		if took := time.Since(began); took > time.Second {
			b.tell("bench: %s took %.0f s", m.name, took.Seconds())
		}
		if ctx.Err() != nil {
			break
		}
	}
	b.progress("")
	return errors.Join(errs...)
}

// bench is one run of the program.
type bench struct {
	options
	dir     string // everything of this run lives below it
	bundles bundles
	facts   facts
	results *results

	runc     *runtime
	runsc    *runtime // nil where it is not installed
	bulkhead *runtime // nil when nothing of it is wanted
	conn     *bus.Conn
	daemon   *daemon.Daemon

	instances []*instance // all daemons
}

// The names of what is measured: those that runc has too, those of them that runsc
// has, and those of bulkhead alone.
var (
	runNames      = []string{"run_true_pool", "run_true_template", "run_true_cold"}
	partNames     = []string{"create", "start", "end", "delete"}
	twinNames     = slices.Concat(runNames, partNames, []string{"exec_true", "state", "echo_rtt", "stdout_rate", "stdin_rate", "mem_per_vm"})
	runscNames    = slices.Concat(runNames, []string{"exec_true", "mem_per_vm"})
	bulkheadNames = []string{"vm_pss", "relay_pss", "daemon_per_vm", "mem_per_vm_ksm", "ksm_settle_s", "ksmd_cpu_after", "ksm_saved_per_vm", "idle_cpu_per_vm", "starts_per_s", "vms_live", liveStarts, liveExec, phasePrefix}
)

// twin is the name of a runtime's number beside bulkhead's.
func twin(prefix, name string) string {
	if prefix == "" {
		return name
	}
	if slices.Contains(runNames, name) { // others have no VM that could be cold
		name = "run_true"
	}
	if name == "mem_per_vm" {
		name = "mem"
	}
	return prefix + name
}

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
	b.findRunsc()
	if slices.ContainsFunc(slices.Concat(twinNames, bulkheadNames), o.only.MatchString) {
		if err := b.startBulkhead(ctx); err != nil {
			return nil, err
		}
	}
	return b, b.warmUp(ctx)
}

// startBulkhead starts the daemon of everything that is measured in the default configuration.
func (b *bench) startBulkhead(ctx context.Context) error {
	in, err := b.startDaemon(ctx, "run", b.vmConfig)
	if err != nil {
		return err
	}
	b.bulkhead, b.conn, b.daemon = in.runtime, in.conn, in.daemon
	return nil
}

// instance is a daemon of the benchmark's own.
type instance struct {
	runtime *runtime
	daemon  *daemon.Daemon
	conn    *bus.Conn
}

// startDaemon starts a daemon with these lines in the section [vm]. name is that of its directory, and short.
func (b *bench) startDaemon(ctx context.Context, name, vm string) (*instance, error) {
	build := os.Getenv("BULKHEAD_BUILD")
	if build == "" {
		return nil, errors.New("BULKHEAD_BUILD must name the build directory; use make bench")
	}
	b.progress("starting bulkheadd")
	dir := filepath.Join(b.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, daemonTime)
	defer cancel()
	runDir := filepath.Join(dir, "run")
	d, err := daemon.Start(ctx, daemon.Options{Build: build, Dir: dir, RunDir: runDir, Host: "bench", VM: vm + "\n"})
	if err != nil {
		return nil, err
	}
	in := &instance{daemon: d, runtime: &runtime{
		binary: filepath.Join(build, "bin", "bulkhead"),
		global: []string{"--config", d.Config, "--root", filepath.Join(dir, "containers")},
		hint:   d.LastLog,
	}}
	b.instances = append(b.instances, in)
	in.conn, err = bus.Dial(ctx, runDir, "bench")
	return in, err
}

// stop ends a daemon and what it runs.
func (in *instance) stop() error {
	if in.conn != nil {
		in.conn.Close()
	}
	return in.daemon.Stop()
}

// warmUp starts a container of each runtime that is not measured: it brings what
// a first start reads into the page cache, and tells the facts of the VM.
func (b *bench) warmUp(ctx context.Context) error {
	for _, rt := range b.all() {
		if err := b.warm(ctx, rt); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) warm(ctx context.Context, rt *runtime) error {
	b.progress("warming up %s", rt.binary)
	c, err := rt.launch(ctx, "warm-up", b.bundles.sleep, stdio{})
	if err != nil {
		return err
	}
	if rt == b.bulkhead {
		err = b.vmFacts(ctx)
	}
	return errors.Join(err, c.remove(ctx))
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
	return vmv1.ListAll("", func(req *vmv1.ListRequest) (*vmv1.ListReply, error) {
		return bus.Call[vmv1.ListReply](ctx, b.conn, b.conn.Subject("vm", "list"), req)
	})
}

// all are the runtimes there are, bulkhead first.
func (b *bench) all() []*runtime {
	return slices.DeleteFunc([]*runtime{b.bulkhead, b.runc, b.runsc}, func(rt *runtime) bool { return rt == nil })
}

// runtimes are those of which at least one of the names is wanted.
func (b *bench) runtimes(names ...string) []*runtime {
	return slices.DeleteFunc(b.all(), func(rt *runtime) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return rt.has(name) && b.only.MatchString(twin(rt.prefix, name)) })
	})
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

// tell writes a line of what is going on, for long measures, whoever reads it.
func (b *bench) tell(format string, args ...any) {
	b.progress("")
	fmt.Fprintf(os.Stderr, format+"\n", args...)
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
	for _, in := range b.instances {
		errs = append(errs, in.stop())
	}
	errs = append(errs, endChildren(), b.releaseRunsc())
	errs = append(errs, os.RemoveAll(b.dir))
	return errors.Join(errs...)
}
