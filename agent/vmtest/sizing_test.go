// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/agent/vmtest"
	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

// The kernel gives up on a processor that does not come up in time, as on a busy host under emulation; maxcpus=1
// makes it leave the second one out for certain.
func TestNoContainerRunsBeforeAllProcessorsDo(t *testing.T) {
	vm := vmtest.BootMachine(t, vmtest.Machine{Options: []string{"-smp", "2,maxcpus=3"}, Parameters: "maxcpus=1"})
	call[agentv1.ConfigureReply](t, vm, "configure", &agentv1.ConfigureRequest{Vm: vmtest.Sandbox, Vcpus: 2})
	ct := create(t, vm, "count", sh("nproc; read x; nproc; read x; nproc"))
	ct.start(t)
	expect := func(want string) {
		t.Helper()
		if err := ct.Until(within(t), want); err != nil {
			t.Errorf("the container counts %q: %v", ct.Output(), err)
		}
	}
	expect("2\n")
	// A running program sees what comes and goes.
	if err := vm.AddProcessor(2); err != nil {
		t.Fatal(err)
	}
	call[agentv1.ResizeReply](t, vm, "resize", &agentv1.ResizeRequest{Vcpus: 3})
	ct.Input("\n")
	expect("2\n3\n")
	call[agentv1.ResizeReply](t, vm, "resize", &agentv1.ResizeRequest{Vcpus: 1})
	ct.Input("\n")
	expect("2\n3\n1\n")
	if code := exit(t, ct.Relay); code != 0 {
		t.Errorf("exit code %d", code)
	}
	// What never comes has a deadline: the caller's.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := bus.CallAgent[agentv1.ResizeReply](ctx, vm.Conn, vmtest.Sandbox, "resize", &agentv1.ResizeRequest{Vcpus: 4}); err == nil {
		t.Error("the guest has found a processor that does not exist")
	}

	// The limit is what programs take for the machine's memory, by /proc and by sysinfo(2). Total, used and free of
	// busybox's free come from both: used is what is left, and a negative number runs into the column before it.
	memory := int64(100 << 20)
	mem := create(t, vm, "memory", sh("awk '/^MemTotal/ {print $2}' /proc/meminfo; free -k | awk '/^Mem/ {print $2, $3 + $4 <= $2}'"), func(s *specs.Spec) {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	})
	mem.start(t)
	if code := exit(t, mem.Relay); code != 0 || mem.Output() != "102400\n102400 1\n" {
		t.Errorf("a container of 102400 KiB sees %q", mem.Output())
	}
}

func limitsChange(t *testing.T, vm *vmtest.VM) {
	const files = "cd /sys/fs/cgroup; cat memory.max memory.low memory.swap.max cpu.weight cpu.max cpu.idle pids.max hugetlb.2MB.max"
	ct := create(t, vm, "limits", sh("sleep 1000"))
	update := func(resources string) {
		t.Helper()
		call[agentv1.UpdateReply](t, vm, "update", &agentv1.UpdateRequest{Container: "limits", Resources: resources})
	}
	n := 0
	expect := func(want string) {
		t.Helper()
		n++
		e := ct.exec(t, fmt.Sprint("cat", n), sh(files))
		if code := exit(t, e); code != 0 || strings.Join(strings.Fields(e.Output()), " ") != want {
			t.Errorf("the limits are %q, want %q", strings.Fields(e.Output()), want)
		}
	}
	// As Docker writes them: the processors are the host's, and zeros are no limits.
	update(`{"memory":{"limit":67108864,"reservation":33554432,"swap":100663296},"cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"7"},` +
		`"pids":{"limit":9},"blockIO":{"weight":0},"hugepageLimits":[{"pageSize":"2MB","limit":4194304},{"pageSize":"64KB","limit":0}]}`)
	ct.start(t)
	expect("67108864 33554432 33554432 59 50000 100000 0 9 4194304")
	call[agentv1.PauseReply](t, vm, "pause", &agentv1.PauseRequest{Container: "limits"})
	update(`{"memory":{"limit":-1,"reservation":-1,"swap":-1},"cpu":{"quota":-1,"idle":1,"shares":512},"pids":{"limit":-1}}`)
	call[agentv1.ResumeReply](t, vm, "resume", &agentv1.ResumeRequest{Container: "limits"})
	expect("max 0 max 0 max 100000 1 max 4194304")
	for resources, why := range map[string]string{
		`{"memory":{"kernel":1}}`:                             "linux.resources.memory.kernel",
		`{"rdma":{"mlx":{"hcaHandles":1}}}`:                   "linux.resources.rdma",
		`{"hugepageLimits":[{"pageSize":"64KB","limit":64}]}`: "64KB",
		`{"unified":{"no.such":"1"}}`:                         "no.such",
		`{`:                                                   "decoding the resources",
	} {
		_, err := ask[agentv1.UpdateReply](t, vm, "update", &agentv1.UpdateRequest{Container: "limits", Resources: resources})
		if err == nil || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "no such file") {
			t.Errorf("%s: %v, want a word of %s", resources, err, why)
		}
	}
	ct.signal(t, 9)
	exit(t, ct.Relay)
	if _, err := ask[agentv1.UpdateReply](t, vm, "update", &agentv1.UpdateRequest{Container: "limits", Resources: `{}`}); bus.ReasonOf(err) != bus.FailedPrecondition {
		t.Errorf("update of a stopped container: %v", err)
	}
	ct.delete(t)
}
