// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
)

const mib = 1 << 20

// sized is a configuration with a limit of memory and of CPU time.
func sized(spec *specs.Spec, memory, quota int64) *specs.Spec {
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}, CPU: &specs.LinuxCPU{Quota: &quota}}
	return spec
}

// createAs makes a container of a configuration of its own.
func (h *host) createAs(id string, spec *specs.Spec) *relay {
	h.t.Helper()
	r := startRelay(h.t, h.bus.RunDir)
	ctx := operation(h.t)
	if _, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, id, r, spec)); err != nil {
		h.t.Fatal(err)
	}
	r.commit()
	return r
}

func (h *host) update(id, resources string) error {
	h.t.Helper()
	_, err := call[vmv1.UpdateReply](operation(h.t), h, "update", &vmv1.UpdateRequest{Ref: ref(id), Resources: resources})
	return err
}

func TestTheVMFollowsItsContainersLimits(t *testing.T) {
	var broken error
	driver := fake.New(fake.Options{ResizeError: func(hypervisor.Size) error { return broken }})
	h := newBus(t)
	h.driver = &observed{Driver: driver, started: make(chan string, 64)}
	h.serve()
	cpus := func(n int) uint32 { return uint32(min(n, runtime.NumCPU())) }
	expect := func(what string, memory uint64, vcpus uint32) {
		t.Helper()
		vms := h.list().Sandboxes
		if len(vms) != 1 || vms[0].MemoryBytes != memory*mib || vms[0].Vcpus != vcpus {
			t.Errorf("%s: the VMs are %v, want %d MiB and %d processors", what, vms, memory, vcpus)
			return
		}
		if got := driver.Processors(vms[0].Id); got != vcpus {
			t.Errorf("%s: the guest runs on %d processors, want %d", what, got, vcpus)
		}
	}
	h.createAs("pause", sized(h.bundle("pause", "sleep"), 64*mib, 100_000))
	expect("at first", 160, 1)
	if err := h.update("pause", `{"memory":{"limit":134217728},"cpu":{"quota":200000}}`); err != nil {
		t.Fatal(err)
	}
	expect("twice as much", 224, cpus(2))
	h.await("", "resized")
	if err := h.update("pause", `{"cpu":{"cpus":"0"}}`); err != nil {
		t.Fatal(err)
	}
	expect("on one of the host's processors", 224, 1)

	broken = errors.New("broken for the test")
	if err := h.update("pause", `{"memory":{"limit":268435456}}`); err == nil || !strings.Contains(err.Error(), "broken for the test") {
		t.Errorf("an update whose VM does not grow: %v", err)
	}
	broken = nil
	expect("after a failure", 224, 1)
	if got := h.state("pause").Resources; !strings.Contains(got, `"limit":134217728`) {
		t.Errorf("a failed update is recorded: %s", got)
	}
	refused(t, "more than there is room for", h.update("pause", fmt.Sprintf(`{"memory":{"limit":%d}}`, int64(1)<<60)), bus.ResourceExhausted, "create the container again")
	expect("after a refusal", 224, 1)

	app := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	if _, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "app", app, inPod(sized(h.bundle("app", "sleep"), 32*mib, 100_000), "pause"))); err != nil {
		t.Fatal(err)
	}
	app.commit()
	expect("with a second container", 256, cpus(2))
	h.restart()
	expect("after a restart of the worker", 256, cpus(2))
	h.kill("app", 9)
	app.expectCode(137)
	h.await("app", "exited")
	h.delete("app", false)
	expect("with the second container gone", 224, 1)
	h.delete("pause", true)
	h.expectNothing()
}
