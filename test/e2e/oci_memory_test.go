// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/test/e2e/host"
)

// TestOCIOneVMsPeakIsTheNextOnes: on a host with memory for one peak, one VM after the other has it, and
// nothing is killed.
func TestOCIOneVMsPeakIsTheNextOnes(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	// A third VM stands in the pool.
	h := newHost(t, "budget", host.Settings{Budget: 3*128 + 1280})
	if err := h.Start(within(t, launchTime)); err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, h)
	o := newOCI(t, h)
	limit := int64(1280 * mib)
	ids := []string{newID("first"), newID("second")}
	for _, id := range ids {
		spec := newSpec("sleep", "1000")
		spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
		o.launch(id, spec)
		defer o.remove(id)
	}
	defer consolesOnFailure(t)
	peak := func(id string, mib int) int {
		return o.cli("exec", id, "dd", "if=/dev/zero", "of=/dev/null", fmt.Sprintf("bs=%dM", mib), "count=1").Code
	}
	for i, id := range append(ids, ids[0]) {
		expect(t, fmt.Sprintf("the code of peak %d, of 1 GiB", i+1), peak(id, 1024), 0)
	}
}

// TestOCIExecsWhileMemoryIsWaitedFor: a process that is born where memory is waited for does not hold up the agent, which
// has to see to that memory, also in a VM with one processor.
func TestOCIExecsWhileMemoryIsWaitedFor(t *testing.T) {
	t.Parallel()
	const mib, rounds, atOnce, times = 1 << 20, 2, 5, 8
	o := newOCI(t, sharedHost(t))
	limit, quota, period := int64(1000*mib), int64(100_000), uint64(100_000)
	for round := range rounds {
		spec := newSpec("sh", "-c", "until test -e /go; do sleep 0.1; done; dd if=/dev/zero of=/dev/null bs=800M count=1; echo ended with $?; exec sleep 1000")
		spec.Linux.Resources = &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period},
		}
		id := newID(fmt.Sprint("execs-", round))
		m := o.launch(id, spec)
		defer o.remove(id)
		var execs sync.WaitGroup
		for range atOnce {
			execs.Go(func() {
				for range times {
					if r := o.cli("exec", id, "touch", "/go"); r.Code != 0 {
						t.Errorf("round %d: an exec ends with %d: %s", round, r.Code, r.Stderr)
						return
					}
				}
			})
		}
		execs.Wait()
		until(t, m, "ended with 0\n")
	}
}
