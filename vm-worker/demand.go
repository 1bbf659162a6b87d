// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus/config"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/hypervisor"
)

// demand is what one container asks of the VM it runs in.
type demand struct {
	millicpus uint64 // thousandths of a CPU by its quota; 0: no quota
	cpuset    uint64 // how many of the host's CPUs it may use; 0: all
	memory    uint64 // bytes by its limit; 0: no limit
	idle      bool   // a pod's own container, which only waits
}

// demandOf derives a container's demand from its limits and annotations.
func demandOf(r *specs.LinuxResources, annotations map[string]string) demand {
	var d demand
	for _, a := range vmv1.PodAnnotations() {
		d.idle = d.idle || annotations[a.Kind] == "sandbox"
	}
	if r == nil {
		return d
	}
	d.millicpus = millicpus(r.CPU)
	if d.millicpus == 0 {
		d.millicpus = unifiedMillicpus(r.Unified["cpu.max"])
	}
	if r.CPU != nil {
		d.cpuset = countCPUs(r.CPU.Cpus)
	}
	if r.Memory != nil && value(r.Memory.Limit) > 0 {
		d.memory = uint64(*r.Memory.Limit)
	} else if n, err := strconv.ParseUint(r.Unified["memory.max"], 10, 64); err == nil {
		d.memory = n
	}
	// Engines write enormous limits for "none"; no guest needs more than the host has.
	d.memory = min(d.memory, hostMemory())
	return d
}

// millicpus is the part of a CPU that a quota gives, in thousandths; 0 is all.
func millicpus(c *specs.LinuxCPU) uint64 {
	if c == nil || value(c.Quota) <= 0 {
		return 0
	}
	period := value(c.Period)
	if period == 0 {
		period = hostcgroup.DefaultPeriod
	}
	quota := min(uint64(*c.Quota), 1<<50) // what is multiplied below must fit
	return max((quota*1000+period-1)/period, 1)
}

// unifiedMillicpus reads cpu.max of cgroup v2, "QUOTA [PERIOD]" or "max [PERIOD]".
func unifiedMillicpus(text string) uint64 {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return 0
	}
	quota, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return 0
	}
	c := specs.LinuxCPU{Quota: &quota}
	if len(fields) > 1 {
		period, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return 0
		}
		c.Period = &period
	}
	return millicpus(&c)
}

// countCPUs counts a list as 0-2,7 (cpuset(7), "List format"); 0 when there is
// none, or one that the host's cgroup will refuse.
func countCPUs(list string) uint64 {
	var n uint64
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.ParseUint(first, 10, 16)
		b, errB := strconv.ParseUint(last, 10, 16)
		if errA != nil || errB != nil || b < a {
			return 0
		}
		n += b - a + 1
	}
	return n
}

// sizeOf is what a VM needs for all of its containers: the sum of their limits,
// and for each without a limit what the configuration gives.
func sizeOf(demands []demand, cfg config.VM) hypervisor.Size {
	var milli, memory uint64
	for _, d := range demands {
		if d.idle && len(demands) > 1 {
			milli += d.millicpus
			memory += d.memory
			continue
		}
		cpus := d.millicpus
		if cpus == 0 {
			cpus = uint64(cfg.VCPUs) * 1000
		}
		if d.cpuset > 0 {
			cpus = min(cpus, d.cpuset*1000)
		}
		milli += cpus
		if d.memory == 0 {
			memory += uint64(cfg.MemoryMiB) << 20
		} else {
			memory += d.memory
		}
	}
	memory = min(memory, hostMemory())
	memory += uint64(cfg.OverheadMiB)<<20 + pageDescriptors(memory)
	const mib = 1 << 20 // guests get whole mebibytes
	return hypervisor.Size{
		VCPUs:       uint32(min(max((milli+999)/1000, 1), maxProcessors())),
		MemoryBytes: (memory + mib - 1) &^ (mib - 1),
	}
}

// pageDescriptors is what the guest's kernel needs to keep account of so much
// memory, 64 bytes for 4 KiB, where it is more than the overhead has room for.
func pageDescriptors(memory uint64) uint64 {
	const covered = 16 << 20 // those of the first GiB
	return max(memory/64, covered) - covered
}

// containersPart is what of a VM's memory its containers may use together: the inverse of sizeOf.
func containersPart(size uint64, cfg config.VM) uint64 {
	const covered = 16 << 20
	part := size - min(size, uint64(cfg.OverheadMiB)<<20)
	if part > covered*64 {
		part = (part + covered) / 65 * 64
	}
	return part
}

// kernelProcessors is CONFIG_NR_CPUS of the guest.
const kernelProcessors = 64

// maxProcessors is the most a VM can have: more than the host's would only wait
// for each other.
func maxProcessors() uint64 { return uint64(min(runtime.NumCPU(), kernelProcessors)) }

// What a VM may grow to beyond its first size. Room costs: 0.2 MB of the guest
// for each processor, and 0.1 MB of the host for each GiB.
const (
	roomFactor     = 4
	roomProcessors = 8
	roomMemory     = 16 << 30
)

// roomFor is how far a VM that starts with a size may grow.
func roomFor(size hypervisor.Size) hypervisor.Size {
	room := hypervisor.Size{
		VCPUs:       uint32(min(max(uint64(size.VCPUs)*roomFactor, roomProcessors), maxProcessors())),
		MemoryBytes: min(max(size.MemoryBytes*roomFactor, roomMemory), hostMemory()),
	}
	if strictOvercommit() {
		// There the room would be taken from the host at once.
		room.MemoryBytes = 0
	}
	return hypervisor.Size{VCPUs: max(room.VCPUs, size.VCPUs), MemoryBytes: max(room.MemoryBytes, size.MemoryBytes)}
}

// strictOvercommit tells whether this host promises no memory that it does not
// have (Documentation/mm/overcommit-accounting.rst, mode 2).
func strictOvercommit() bool {
	mode, err := os.ReadFile("/proc/sys/vm/overcommit_memory")
	return err == nil && string(bytes.TrimSpace(mode)) == "2"
}
