// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

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

// TestOCIAPeakIsTheHostsAgain: nine tenths of what a container has had at its peak, and freed, the host has in half a
// minute: issue 5 says so, which is why a time is asserted here. Seen in the memory of QEMU that is no other process's, so
// all on the way have their part: container, agent, worker, guest's kernel and QEMU.
func TestOCIAPeakIsTheHostsAgain(t *testing.T) {
	t.Parallel()
	const mib, peak, back = 1 << 20, 512, 30 * time.Second
	o := newOCI(t, sharedHost(t))
	conn := dial(t, o.host)
	spec := newSpec("sleep", "1000")
	limit := int64((peak + 128) * mib)
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	id := newID("peak")
	o.launch(id, spec)
	defer o.remove(id)
	o.do("exec", id, "dd", "if=/dev/zero", "of=/dev/null", "bs=1M", "count=1") // what it is made of stays with the VM
	qemu := fmt.Sprintf("/proc/%d/", o.sandbox(conn, id).GetPid())
	own := func() uint64 { return kernelSum(t, qemu+"smaps_rollup", "Private_Dirty:") }
	before := own()
	// From now on, the peak is another (proc_pid_clear_refs(5)): memory may go back before anybody has looked.
	if err := os.WriteFile(qemu+"clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	resident := kernelSum(t, qemu+"status", "VmHWM:")
	o.do("exec", id, "dd", "if=/dev/zero", "of=/dev/null", fmt.Sprintf("bs=%dM", peak), "count=1")
	freed := time.Now()
	most := kernelSum(t, qemu+"status", "VmHWM:") - resident
	if most < peak*mib {
		t.Errorf("the VM had %d MiB more at its peak, while its container used %d", most/mib, peak)
	}
	for {
		now := own()
		took := time.Since(freed)
		if now <= before+peak*mib/10 {
			t.Logf("of %d MiB the VM still has %d after %s", most/mib, (int64(now)-int64(before))/mib, took)
			return
		}
		if took > back {
			t.Fatalf("of %d MiB the VM still has %d, %s after they were freed", most/mib, (int64(now)-int64(before))/mib, took)
		}
		time.Sleep(100 * time.Millisecond) // the host is told no event
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
