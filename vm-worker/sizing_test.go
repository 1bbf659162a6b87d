// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
		if len(vms) != 1 || vms[0].MemoryLimitBytes != memory*mib || vms[0].MemoryBytes != 128*mib || vms[0].Vcpus != vcpus {
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
	late := startRelay(t, h.bus.RunDir)
	ctx = operation(t)
	_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "late", late, inPod(sized(h.bundle("late", "sleep"), 1<<60, 100_000), "pause")))
	refused(t, "a container for which there is no room", err, bus.ResourceExhausted, "the container for which it was started")
	expect("after the refusal of a third", 256, cpus(2))
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

// hostQuota is the CPU quota of a container's cgroup on the host, in µs.
func (h *host) hostQuota(id string) string {
	h.t.Helper()
	files, _ := filepath.Glob("/sys/fs/cgroup/cpu*" + h.cgroups + "/" + id + "/cpu.cfs_quota_us")
	if len(files) == 0 {
		files = []string{"/sys/fs/cgroup" + h.cgroups + "/" + id + "/cpu.max"}
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.Fields(string(text))[0]
}

// TestAVMMayUseTheCPUTimeOfAllItsContainers: it runs in the cgroup of the first.
func TestAVMMayUseTheCPUTimeOfAllItsContainers(t *testing.T) {
	h := newHost(t, fake.Options{})
	first := h.createAs("pause", sized(h.bundle("pause", "sleep"), 64*mib, 100_000))
	h.start("pause")
	app := h.createAs("app", inPod(sized(h.bundle("app", "sleep"), 32*mib, 50_000), "pause"))
	h.start("app")
	expect := func(what, want string) {
		t.Helper()
		if got := h.hostQuota("pause"); got != want {
			t.Errorf("%s the VM may use %s µs in each period, want %s", what, got, want)
		}
	}
	expect("with two containers", "150000")
	if err := h.update("app", `{"cpu":{"quota":200000}}`); err != nil {
		t.Fatal(err)
	}
	expect("when the second may use more", "300000")
	h.kill("pause", 9)
	first.expectCode(137)
	h.await("pause", "exited")
	if err := h.update("app", `{"cpu":{"quota":250000}}`); err != nil {
		t.Fatal(err)
	}
	expect("when the first has ended", "250000")
	h.delete("pause", false)
	if err := h.update("app", `{"cpu":{"quota":120000}}`); err != nil {
		t.Fatal(err)
	}
	if got := h.hostQuota("bulkhead-" + h.state("app").Sandbox); got != "120000" {
		t.Errorf("when the first is deleted the VM may use %s µs in each period", got)
	}
	h.kill("app", 9)
	app.expectCode(137)
	h.await("app", "exited")
	h.delete("app", false)
	h.expectNothing()
}

func TestLimitsInTheWordsOfCgroupV2BoundTheirContainerAlone(t *testing.T) {
	h := newHost(t, fake.Options{})
	spec := h.bundle("pause", "sleep")
	spec.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"cpu.max": "100000 100000", "memory.max": "67108864"}}
	h.createAs("pause", spec)
	h.createAs("app", inPod(sized(h.bundle("app", "sleep"), 32*mib, 50_000), "pause"))
	if got := h.hostQuota("pause"); got != "150000" {
		t.Errorf("the VM may use %s µs in each period", got)
	}
	h.delete("app", true)
	h.delete("pause", true)
	h.expectNothing()
}

// TestAFailedMemberLeavesTheSizeThatOthersNeed: what was changed while it was being made stays.
func TestAFailedMemberLeavesTheSizeThatOthersNeed(t *testing.T) {
	var meanwhile func() error
	h := newHost(t, fake.Options{AttachError: func(path string) error {
		if strings.Contains(path, "bad") {
			return errors.Join(errors.New("broken for the test"), meanwhile())
		}
		return nil
	}})
	meanwhile = func() error { return h.update("pause", `{"memory":{"limit":134217728}}`) }
	h.createAs("pause", sized(h.bundle("pause", "sleep"), 64*mib, 100_000))
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "bad", r, inPod(sized(h.bundle("bad", "sleep"), 32*mib, 100_000), "pause")))
	if err == nil || !strings.Contains(err.Error(), "broken for the test") {
		t.Errorf("a member whose mount fails: %v", err)
	}
	if got := h.list().Sandboxes; len(got) != 1 || got[0].MemoryLimitBytes != 224*mib || got[0].Vcpus != 1 {
		t.Errorf("the VMs are %v, want one of 224 MiB and a processor", got)
	}
	h.delete("pause", true)
	h.expectNothing()
}
