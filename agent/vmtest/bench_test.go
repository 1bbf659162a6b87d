// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"bulkhead/agent/vmtest"
)

// BenchmarkLifecycle measures what the guest's part of a container costs, step by step, in wall time and in
// QEMU's processor time, which other work on the machine disturbs less. Run it before and after a change:
//
//	go test -run '^$' -bench Lifecycle -benchtime 12x ./agent/vmtest
func BenchmarkLifecycle(b *testing.B) {
	vm := vmtest.Boot(b)
	steps := make(map[string][]cost)
	i := 0
	for b.Loop() {
		i++
		var c *ctr
		measure(b, vm, steps, "create", func() { c = create(b, vm, fmt.Sprintf("c%d", i), sh("read x; exit $x")) })
		measure(b, vm, steps, "start", func() { c.start(b) })
		measure(b, vm, steps, "exec", func() { exit(b, c.exec(b, "e", process("true"))) })
		c.Input("7\n")
		measure(b, vm, steps, "exit", func() { exit(b, c.Relay) })
		measure(b, vm, steps, "delete", func() { c.delete(b) })
		bare := process("true")
		measure(b, vm, steps, "bare-create", func() { c = create(b, vm, fmt.Sprintf("b%d", i), bare, withoutSeccomp) })
		c.delete(b)
	}
	report(b, steps)
}

// BenchmarkFirstContainer measures the same in a VM that has just booted, which is what a person waits for:
// nothing is in the guest's caches, nor in the emulator's.
//
//	go test -run '^$' -bench FirstContainer -benchtime 12x ./agent/vmtest
func BenchmarkFirstContainer(b *testing.B) {
	steps := make(map[string][]cost)
	for b.Loop() {
		var c *ctr
		vm := vmtest.Boot(b)
		steps["boot"] = append(steps["boot"], cost{vm.Phase.Ready, vm.CPU()})
		measure(b, vm, steps, "create", func() { c = create(b, vm, "c", sh("read x; exit $x")) })
		measure(b, vm, steps, "start", func() { c.start(b) })
		measure(b, vm, steps, "exec", func() { exit(b, c.exec(b, "e", process("true"))) })
		c.Input("7\n")
		measure(b, vm, steps, "exit", func() { exit(b, c.Relay) })
		measure(b, vm, steps, "delete", func() { c.delete(b) })
		vm.Close()
	}
	report(b, steps)
}

// cost is what one step took.
type cost struct{ wall, cpu time.Duration }

func report(b *testing.B, steps map[string][]cost) {
	for name, costs := range steps {
		b.ReportMetric(median(costs, func(c cost) time.Duration { return c.wall }), name+"-ms")
		b.ReportMetric(median(costs, func(c cost) time.Duration { return c.cpu }), name+"-cpu-ms")
	}
	b.ReportMetric(0, "ns/op") // the sum of the steps says nothing
}

func measure(b *testing.B, vm *vmtest.VM, steps map[string][]cost, name string, step func()) {
	b.Helper()
	wall, cpu := time.Now(), vm.CPU()
	step()
	steps[name] = append(steps[name], cost{time.Since(wall), vm.CPU() - cpu})
}

func median(costs []cost, of func(cost) time.Duration) float64 {
	values := make([]time.Duration, 0, len(costs))
	for _, c := range costs {
		values = append(values, of(c))
	}
	slices.Sort(values)
	return float64(values[len(values)/2].Microseconds()) / 1000
}
