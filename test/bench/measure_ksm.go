// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	ksmv1 "bulkhead/proto/ksm/v1"
)

// ksmNames are the numbers that need a ksm service that steers the kernel.
var ksmNames = []string{"mem_per_vm_ksm", "ksm_settle_s", "ksmd_cpu_after", "ksm_saved_per_vm"}

const (
	// mergeTime bounds the wait for the loop to settle.
	mergeTime = 4 * time.Minute
	mergeStep = time.Second // the answer has a line for each VM
)

// stopMerging keeps the ksm service from merging what is measured, and says whether
// it will be asked to.
func (b *bench) stopMerging(ctx context.Context) (steered bool, err error) {
	status, err := b.steer(ctx, "observe")
	if err != nil {
		return false, err
	}
	leaveOut := func(why string) (bool, error) {
		if b.results.wants(ksmNames...) {
			b.results.leaveOut(strings.Join(ksmNames, ", "), why)
		}
		return false, nil
	}
	switch {
	case !status.Kernel.Available:
		return leaveOut("this kernel has no KSM")
	case status.Kernel.Run == 1:
		b.results.leaveOut("mem_per_vm without KSM", "the host merges by itself (run is 1), or another daemon steers it")
		return leaveOut("the host merges by itself (run is 1), or another daemon steers it")
	}
	return b.results.wants(ksmNames...), nil
}

// steer sets the mode of the ksm service.
func (b *bench) steer(ctx context.Context, mode string) (*ksmv1.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	reply, err := bus.Call[ksmv1.SetReply](ctx, b.conn, b.conn.Subject("ksm", "set"), &ksmv1.SetRequest{Mode: mode})
	if err != nil {
		return nil, fmt.Errorf("set the ksm service to %s: %w", mode, err)
	}
	return reply.Status, nil
}

// merge takes what KSM makes of a burst of n idle containers. before is the memory that was
// available without them.
func (b *bench) merge(ctx context.Context, before float64, n int) error {
	if _, err := b.steer(ctx, "auto"); err != nil {
		return err
	}
	type step struct {
		at    time.Duration
		saved int64
	}
	var steps []step
	began := time.Now()
	for phase := ""; phase != "settled"; {
		if time.Since(began) > mergeTime {
			b.results.leaveOut(strings.Join(ksmNames, ", "), fmt.Sprintf("the ksm service was still %s after %s", phase, mergeTime))
			return nil
		}
		if err := pause(ctx, mergeStep); err != nil {
			return err
		}
		status, err := bus.Call[ksmv1.Status](ctx, b.conn, b.conn.Subject("ksm", "status"), &busv1.StatusRequest{})
		if err != nil {
			return err
		}
		phase = status.Phase
		steps = append(steps, step{time.Since(began), status.SavedBytes})
		b.progress("ksm: %s, %.0f MB saved", phase, float64(status.SavedBytes)/1e6)
	}
	b.results.addMean("ksm_saved_per_vm", "MB", float64(steps[len(steps)-1].saved)/1e6, n)
	final := steps[len(steps)-1].saved
	for _, s := range steps {
		if s.saved >= final-final/100 {
			b.results.add("ksm_settle_s", "s", s.at.Seconds())
			break
		}
	}
	if ksmd := kernelThread("ksmd"); ksmd != 0 {
		used, err := cpuTime(ksmd)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := pause(ctx, idleTime); err != nil {
			return err
		}
		later, err := cpuTime(ksmd)
		if err != nil {
			return err
		}
		b.results.add("ksmd_cpu_after", "% of a core", 100*(later-used).Seconds()/time.Since(began).Seconds())
	} else {
		b.results.leaveOut("ksmd_cpu_after", "the kernel's thread cannot be seen from this PID namespace")
	}
	after, err := b.settledMemory(ctx)
	if err != nil {
		return err
	}
	b.results.addMean("mem_per_vm_ksm", "MB", (before-after)/1e6, n)
	return nil
}

// kernelThread is the pid of a thread of the kernel, or 0.
func kernelThread(name string) int {
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range comms {
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == name {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if _, program := os.Readlink(filepath.Join(filepath.Dir(path), "exe")); err == nil && program != nil {
				return pid
			}
		}
	}
	return 0
}
