// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// phases are the parts of a start, as vm-worker measured them.
var phases = []struct{ key, name string }{
	{"vm_spawn", "QEMU process up, guest let run"},
	{"agent_ready", "guest kernel booted, agent on the bus"},
	{"container_create", "container made in the guest"},
	{"container_start", "container process started"},
}

func report(o *outcome, rtt time.Duration) {
	host, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Printf("\n  host kernel   %s\n  guest kernel  %s\n", strings.TrimSpace(string(host)), o.sandbox.Kernel)
	fmt.Printf("  accelerator   %s: %s\n", o.sandbox.Accelerator, o.sandbox.AcceleratorReason)

	fmt.Printf("\n  the container's own words:\n")
	for _, l := range o.output {
		fmt.Printf("    | %s\n", l)
	}
	fmt.Printf("  exit code     %d\n", o.code)

	fmt.Printf("\n  start, by phase (ms):\n")
	row := func(name string, v time.Duration) {
		fmt.Printf("    %-44s %8.1f\n", name, float64(v.Microseconds())/1000)
	}
	row("one request over the bus", rtt)
	var before time.Duration
	for _, p := range phases {
		v, ok := o.sandbox.Phases[p.key]
		if !ok {
			continue
		}
		took := v.AsDuration()
		if p.key == "vm_spawn" {
			before = took
		}
		if p.key == "agent_ready" { // measured from the same beginning
			took -= before
		}
		row(p.name, took)
	}
	row("bulkhead run until the first line of output", o.total)

	mib := func(b uint64) float64 { return float64(b) / (1 << 20) }
	fmt.Printf("\n  host memory (MiB): VM %.1f (PSS), relay %.1f (PSS); guest has %.0f\n",
		mib(o.stats.VmPssBytes), mib(o.stats.RelayPssBytes), mib(o.sandbox.MemoryBytes))
	fmt.Printf("\n  everything is removed again. Try it with Docker: docs/operations.md\n")
}
