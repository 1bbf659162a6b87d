// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	vmv1 "bulkhead/proto/vm/v1"
)

// phasePrefix is that of the worker's own measurements of a start.
const phasePrefix = "phase_"

const (
	// startersAtOnce is how many containers of a burst are being started at a time.
	startersAtOnce = 4
	// idleTime is how long what an idle VM costs is watched.
	idleTime = 30 * time.Second
)

// burstSize is how many containers stand for many.
func (b *bench) burstSize() int {
	if b.quick {
		return 2
	}
	return b.vms
}

// measureBurst takes what idle containers cost, of a number of them that is started
// at once: memory before and after KSM, processor time, and how fast they came.
func measureBurst(ctx context.Context, b *bench) (err error) {
	if b.bulkhead == nil || !b.results.wants("mem_per_vm", "vm_pss", "relay_pss", "daemon_per_vm", "mem_per_vm_ksm", "ksm_settle_s", "ksmd_cpu_after", "ksm_saved_per_vm", "idle_cpu_per_vm", "starts_per_s") {
		return nil
	}
	n := b.burstSize()
	steered, err := b.stopMerging(ctx)
	if err != nil {
		return err
	}
	defer func() { // what is measured next is measured in the default configuration
		_, steerErr := b.steer(context.WithoutCancel(ctx), "auto")
		err = errors.Join(err, steerErr)
	}()
	if err := awaitStock(ctx, b.conn); err != nil {
		return err
	}
	before, err := b.settledMemory(ctx)
	if err != nil {
		return err
	}
	daemonBefore, err := pssBytes(b.daemon.PID)
	if err != nil {
		return err
	}
	began := time.Now()
	containers, err := b.burst(ctx, b.bulkhead, n)
	took := time.Since(began)
	defer func() { err = errors.Join(err, removeAll(ctx, containers)) }()
	if err != nil {
		return err
	}
	b.results.add("starts_per_s", "1/s", float64(n)/took.Seconds())
	if err := awaitStock(ctx, b.conn); err != nil { // before, there was as much in it
		return err
	}
	b.progress("memory: settling")
	after, err := b.settledMemory(ctx)
	if err != nil {
		return err
	}
	b.results.addMean("mem_per_vm", "MB", (before-after)/1e6, n)
	daemonAfter, err := pssBytes(b.daemon.PID)
	if err != nil {
		return err
	}
	b.results.addMean("daemon_per_vm", "MB", (daemonAfter-daemonBefore)/1e6, n)
	sandboxes, err := b.list(ctx)
	if err != nil {
		return err
	}
	if err := b.shares(sandboxes.Sandboxes, containers); err != nil {
		return err
	}
	if err := b.idleCPU(ctx, sandboxes.Sandboxes, containers); err != nil {
		return err
	}
	if steered {
		return b.merge(ctx, before, n)
	}
	return nil
}

// measureMemoryOfOthers takes what an idle container of the other runtimes costs.
func measureMemoryOfOthers(ctx context.Context, b *bench) error {
	for _, rt := range b.runtimes("mem_per_vm") {
		if rt == b.bulkhead {
			continue
		}
		before, err := b.settledMemory(ctx)
		if err != nil {
			return err
		}
		n := b.burstSize()
		containers, err := b.burst(ctx, rt, n)
		if err == nil {
			b.progress("%smem: settling", rt.prefix)
			var after float64
			after, err = b.settledMemory(ctx)
			b.results.addMean(twin(rt.prefix, "mem_per_vm"), "MB", (before-after)/1e6, n)
		}
		if err := errors.Join(err, removeAll(ctx, containers)); err != nil {
			return err
		}
	}
	return nil
}

// burst starts n idle containers, several at a time. Those that it returns are there, also on an error.
func (b *bench) burst(ctx context.Context, rt *runtime, n int) ([]*container, error) {
	made := make([]*container, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(startersAtOnce)
	for i := range n {
		group.Go(func() (err error) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b.progress("burst: container %d/%d", i+1, n)
			made[i], err = rt.launch(ctx, numbered("burst", i), b.bundles.sleep, stdio{})
			return err
		})
	}
	err := group.Wait()
	var there []*container
	for _, c := range made {
		if c != nil {
			there = append(there, c)
		}
	}
	return there, err
}

// numbered is the id of one of many containers. None is the beginning of another:
// runsc takes that for a name of both.
func numbered(name string, i int) string { return fmt.Sprintf("%s-%05d", name, i) }

// removeAll removes containers, several at a time, in whatever state they are.
func removeAll(ctx context.Context, containers []*container) error {
	var group errgroup.Group
	group.SetLimit(startersAtOnce)
	errs := make([]error, len(containers))
	for i, c := range containers {
		group.Go(func() error {
			errs[i] = c.remove(ctx)
			return nil
		})
	}
	_ = group.Wait() // every error is in errs
	return errors.Join(errs...)
}

// shares takes the PSS of each QEMU and each relay.
func (b *bench) shares(sandboxes []*vmv1.Sandbox, containers []*container) error {
	for _, sandbox := range sandboxes {
		if sandbox.Pid == 0 || len(sandbox.Containers) == 0 {
			continue // it stands ready in the pool
		}
		pss, err := pssBytes(int(sandbox.Pid))
		if err != nil {
			return err
		}
		b.results.add("vm_pss", "MB", pss/1e6)
	}
	for _, c := range containers {
		pss, err := pssBytes(c.pid)
		if err != nil {
			return err
		}
		b.results.add("relay_pss", "MB", pss/1e6)
	}
	return nil
}

// idleCPU takes the processor time of QEMUs and relays while nothing happens.
func (b *bench) idleCPU(ctx context.Context, sandboxes []*vmv1.Sandbox, containers []*container) error {
	if !b.results.wants("idle_cpu_per_vm") {
		return nil
	}
	var pids []int
	vms := 0
	for _, sandbox := range sandboxes {
		if sandbox.Pid != 0 {
			pids = append(pids, int(sandbox.Pid))
			vms++
		}
	}
	for _, c := range containers {
		pids = append(pids, c.pid)
	}
	b.progress("idle: watching for %s", idleTime)
	before, err := cpuTimes(pids)
	if err != nil {
		return err
	}
	began := time.Now()
	watch := idleTime
	if b.quick {
		watch = time.Second
	}
	if err := pause(ctx, watch); err != nil {
		return err
	}
	after, err := cpuTimes(pids)
	if err != nil {
		return err
	}
	b.results.addMean("idle_cpu_per_vm", "% of a core", 100*(after-before).Seconds()/time.Since(began).Seconds(), vms)
	return nil
}

func cpuTimes(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		used, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// measurePhases takes how the worker saw starts that had the machine for themselves.
func measurePhases(ctx context.Context, b *bench) error {
	if b.bulkhead == nil || !b.results.wants(phasePrefix) {
		return nil
	}
	n := b.samples(10)
	for i := range n {
		b.progress("phases %d/%d", i+1, n)
		if err := b.calm(ctx); err != nil {
			return err
		}
		c, err := b.bulkhead.launch(ctx, numbered("phase", i), b.bundles.sleep, stdio{})
		if err != nil {
			return err
		}
		list, err := b.list(ctx)
		if err := errors.Join(err, c.remove(ctx)); err != nil {
			return err
		}
		for _, sandbox := range list.Sandboxes {
			if len(sandbox.Containers) == 0 {
				continue
			}
			for name, took := range sandbox.Phases {
				b.results.addTime(phasePrefix+name, took.AsDuration())
			}
		}
	}
	return nil
}
