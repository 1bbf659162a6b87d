// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"encoding/json"
	"math"
	"runtime"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	"bulkhead/bus/config"
	vmv1 "bulkhead/proto/vm/v1"
)

// asked is a request that is complete, for tests to change.
func asked(t *testing.T, resources *specs.LinuxResources, annotations map[string]string) *vmv1.CreateRequest {
	t.Helper()
	text, err := json.Marshal(&specs.Spec{
		Process: &specs.Process{Args: []string{"true"}}, Root: &specs.Root{}, Annotations: annotations,
		Linux: &specs.Linux{Resources: resources},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &vmv1.CreateRequest{
		Ref: &vmv1.ContainerRef{Root: "/run/engine", Id: "c1"}, Bundle: "/bundle", Rootfs: "/bundle/rootfs", Config: string(text),
		Mounts: []*vmv1.HandedMount{{Destination: "/", IsDir: true}, {Index: 1, Destination: "/data"}},
	}
}

func TestTheVMIsSizedByTheContainersLimits(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	cfg := config.VM{MemoryMiB: 512, OverheadMiB: 96, VCPUs: 1}
	to := func(n int64) *int64 { return &n }
	period := func(n uint64) *uint64 { return &n }
	for _, c := range []struct {
		name   string
		limits *specs.LinuxResources
		memory uint64
		vcpus  uint32
	}{
		{"no limits", nil, 608 * mib, 1},
		{"memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(64 * mib)}}, 160 * mib, 1},
		{"memory, uneven", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(64*mib + 1)}}, 161 * mib, 1},
		{"memory, unlimited by -1", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(-1)}}, 608 * mib, 1},
		{"memory, unlimited by size", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(math.MaxInt64)}}, (hostMemory() + 96*mib + pageDescriptors(hostMemory()) + mib - 1) &^ (mib - 1), 1},
		{"a part of a cpu", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(50_000)}}, 608 * mib, 1},
		{"more than one cpu", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(15_000), Period: period(10_000)}}, 608 * mib, uint32(min(2, runtime.NumCPU()))},
		{"cpus of a cpuset", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(400_000), Cpus: "0"}}, 608 * mib, 1},
		{"unified", &specs.LinuxResources{Unified: map[string]string{"memory.max": "67108864", "cpu.max": "200000 100000"}}, 160 * mib, uint32(min(2, runtime.NumCPU()))},
		{"more than a GiB, with its page descriptors", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(2048 * mib)}}, (2048 + 96 + 16) * mib, 1},
		{"more cpus than there are", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(math.MaxInt64)}}, 608 * mib, uint32(runtime.NumCPU())},
	} {
		p, err := newPlan(asked(t, c.limits, nil), cfg)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if p.size.MemoryBytes != c.memory || p.size.VCPUs != c.vcpus {
			t.Errorf("%s: %d bytes and %d cpus, want %d and %d", c.name, p.size.MemoryBytes, p.size.VCPUs, c.memory, c.vcpus)
		}
	}
}

func TestAPodsVMHasTheSumOfItsContainersLimits(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	cfg := config.VM{MemoryMiB: 512, OverheadMiB: 96, VCPUs: 1}
	idle := demand{idle: true}
	for _, c := range []struct {
		name    string
		demands []demand
		memory  uint64
		milli   uint64
	}{
		{"the pod's own container alone", []demand{idle}, 608 * mib, 1000},
		{"and one with limits", []demand{idle, {millicpus: 500, memory: 64 * mib}}, 160 * mib, 500},
		{"two halves of a cpu are one", []demand{idle, {millicpus: 500, memory: 64 * mib}, {millicpus: 500, memory: 32 * mib}}, 192 * mib, 1000},
		{"one without limits", []demand{idle, {millicpus: 1500, memory: 64 * mib}, {}}, (64 + 512 + 96) * mib, 2500},
	} {
		want := uint32(min((c.milli+999)/1000, maxProcessors()))
		if got := sizeOf(c.demands, cfg); got.MemoryBytes != c.memory || got.VCPUs != want {
			t.Errorf("%s: %d bytes and %d cpus, want %d and %d", c.name, got.MemoryBytes, got.VCPUs, c.memory, want)
		}
	}
}

func TestCPUListsAreCounted(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]uint64{"": 0, "0": 1, "0-2,7": 4, " 1 , 3-4 ": 3, "2-1": 0, "x": 0, "0-": 0} {
		if got := countCPUs(list); got != want {
			t.Errorf("%q: %d, want %d", list, got, want)
		}
	}
}

func TestAPlanIsRefusedBeforeAnythingIsTouched(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		edit func(*vmv1.CreateRequest)
		says string
	}{
		{"no id", func(r *vmv1.CreateRequest) { r.Ref.Id = "" }, "needs a container id"},
		{"no reference", func(r *vmv1.CreateRequest) { r.Ref = nil }, "needs a container id"},
		{"relative root", func(r *vmv1.CreateRequest) { r.Ref.Root = "run" }, "absolute root"},
		{"relative bundle", func(r *vmv1.CreateRequest) { r.Bundle = "bundle" }, "absolute path of its bundle"},
		{"torn configuration", func(r *vmv1.CreateRequest) { r.Config = r.Config[:10] }, "not a runtime-spec config"},
		{"empty configuration", func(r *vmv1.CreateRequest) { r.Config = "{}" }, "needs root and linux"},
		{"no mounts", func(r *vmv1.CreateRequest) { r.Mounts = nil }, "hands over 0 mounts"},
		{"two roots", func(r *vmv1.CreateRequest) { r.Mounts[1].Destination = "/" }, "2 root file systems"},
		{"a label, switched off", func(r *vmv1.CreateRequest) {
			r.Config = `{"root":{},"linux":{"mountLabel":"system_u:object_r:container_file_t:s0"}}`
		}, "[vm] selinux = false"},
		{"a root that follows the host's mounts", func(r *vmv1.CreateRequest) { r.Mounts[0].Followed = &vmv1.Followed{Source: "/srv"} }, "cannot follow"},
		{"relative mount", func(r *vmv1.CreateRequest) { r.Mounts[1].Destination = "data" }, "not an absolute path"},
	} {
		req := asked(t, nil, nil)
		c.edit(req)
		_, err := newPlan(req, config.VM{MemoryMiB: 512, VCPUs: 1})
		if bus.ReasonOf(err) != bus.InvalidArgument || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s gives %v, want %q", c.name, err, c.says)
		}
	}
}

func TestAPodIsFoundByTheAnnotationsOfEveryEngine(t *testing.T) {
	t.Parallel()
	pod1 := pod{"/run/engine", "pod1"}
	for _, c := range []struct {
		annotations map[string]string
		pod         pod
	}{
		{nil, pod{}},
		{map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod1"}, pod{}},
		{map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod1"}, pod1},
		{map[string]string{"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "pod1"}, pod1},
		{map[string]string{"io.kubernetes.cri-o.ContainerType": "container"}, pod{}},
	} {
		if got := podOf(&vmv1.ContainerRef{Root: "/run/engine", Id: "c"}, c.annotations); got != c.pod {
			t.Errorf("%v is of the pod %v", c.annotations, got)
		}
	}
}
