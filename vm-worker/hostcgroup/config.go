// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hostcgroup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultParent holds the cgroups of bundles that name none, or a relative one.
const defaultParent = "/bulkhead"

// configOf translates a bundle, OCI runtime-spec config-linux.md#control-groups.
// limited tells whether it asks for anything the host has to hold.
func configOf(spec *specs.Spec, key string, opts Options) (config *cgroups.Cgroup, limited bool, err error) {
	config = &cgroups.Cgroup{Systemd: opts.Systemd}
	asked := ""
	var resources *specs.LinuxResources
	if spec.Linux != nil {
		asked, resources = spec.Linux.CgroupsPath, spec.Linux.Resources
	}
	if err := placeOf(config, asked, key); err != nil {
		return nil, false, err
	}
	if opts.Systemd && opts.PID <= 0 {
		return nil, false, errors.New("making a systemd scope needs its first process")
	}
	config.Resources, limited, err = resourcesOf(resources, opts.Overhead)
	return config, limited, err
}

// placeOf sets where the cgroup is.
func placeOf(config *cgroups.Cgroup, asked, key string) error {
	parts := strings.Split(asked, ":")
	switch {
	case !config.Systemd && len(parts) == 3 && !strings.Contains(asked, "/"):
		return fmt.Errorf("cgroupsPath %q is of systemd's form slice:prefix:name: give --systemd-cgroup, or use a path", asked)
	case !config.Systemd && asked == "":
		config.Path = path.Join(defaultParent, key)
	case !config.Systemd && path.IsAbs(asked):
		config.Path = path.Clean(asked)
	case !config.Systemd:
		config.Path = path.Join(defaultParent, path.Clean("/"+asked))
	case asked == "":
		config.ScopePrefix, config.Name = "bulkhead", key
	case len(parts) != 3:
		return fmt.Errorf("cgroupsPath %q is not of the form slice:prefix:name that --systemd-cgroup needs", asked)
	default:
		config.Parent, config.ScopePrefix, config.Name = parts[0], parts[1], parts[2]
	}
	if config.Path == "/" {
		return errors.New("cgroupsPath / would put the container's limits on the whole host: name a directory below it")
	}
	return nil
}

// resourcesOf translates the limits. Those that only a guest kernel can hold
// (devices, huge pages, network classes, RDMA, the OOM switch) stay away from
// the host, where they would hit the hypervisor instead of the container.
func resourcesOf(r *specs.LinuxResources, over Overhead) (*cgroups.Resources, bool, error) {
	out := &cgroups.Resources{SkipDevices: true}
	if r == nil {
		return out, false, nil
	}
	limited := memoryOf(out, r.Memory, over.MemoryBytes)
	limited = cpuOf(out, r.CPU) || limited
	if r.Pids != nil && r.Pids.Limit != nil {
		limit := *r.Pids.Limit
		if limit > 0 {
			limit, limited = limit+over.Pids, true
		} else {
			limit = -1
		}
		out.PidsLimit = &limit
	}
	limited = blockIOOf(out, r.BlockIO) || limited
	if !cgroups.IsCgroup2UnifiedMode() {
		for name := range r.Unified {
			if strings.HasPrefix(name, "cpuset.") || strings.HasPrefix(name, "io.") {
				return nil, false, fmt.Errorf("linux.resources.unified: %s is for the host's processors or disks, and this host has cgroup v1: use the property of linux.resources for it", name)
			}
		}
	} else if len(r.Unified) > 0 {
		unified, err := unifiedOf(r.Unified, over)
		if err != nil {
			return nil, false, err
		}
		if len(unified) > 0 {
			maps.Copy(unified, out.Unified)
			out.Unified, limited = unified, true
		}
	}
	return out, limited, nil
}

func memoryOf(out *cgroups.Resources, m *specs.LinuxMemory, over int64) bool {
	if m == nil {
		return false
	}
	if m.Reservation != nil && *m.Reservation < 0 && cgroups.IsCgroup2UnifiedMode() {
		// A reservation is a promise there, and "none" is zero, which means "as it is".
		out.Unified, m = map[string]string{"memory.low": "0"}, &specs.LinuxMemory{Limit: m.Limit, Swap: m.Swap, Swappiness: m.Swappiness}
	}
	limited := false
	widen := func(v *int64) int64 {
		if v == nil || *v == 0 {
			return 0
		}
		if *v < 0 {
			return -1
		}
		limited = true
		return *v + over
	}
	out.Memory = widen(m.Limit)
	out.MemoryReservation = widen(m.Reservation)
	// swap counts memory and swap together, so the same overhead keeps the
	// difference. Without swap accounting there is nothing to set on v1: the
	// kernel then has no such file, and the guest has no swap anyway.
	if cgroups.IsCgroup2UnifiedMode() || swapAccounted() {
		out.MemorySwap = widen(m.Swap)
	}
	out.MemorySwappiness = m.Swappiness
	return limited
}

func swapAccounted() bool {
	mountpoint, err := cgroups.FindCgroupMountpoint("", "memory")
	if err != nil {
		return false
	}
	// The root cgroup has the file too.
	_, err = os.Stat(filepath.Join(mountpoint, "memory.memsw.limit_in_bytes"))
	return err == nil
}

func cpuOf(out *cgroups.Resources, c *specs.LinuxCPU) bool {
	if c == nil {
		return false
	}
	if c.Shares != nil && (c.Idle == nil || *c.Idle == 0) { // what runs when all else is idle has no weight
		out.CpuShares = *c.Shares
		out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
	}
	out.CpusetCpus, out.CpusetMems, out.CPUIdle = c.Cpus, c.Mems, c.Idle
	quota := c.Quota != nil && *c.Quota > 0
	return quota || out.CpuShares != 0 || c.Cpus != "" || c.Mems != ""
}

func blockIOOf(out *cgroups.Resources, b *specs.LinuxBlockIO) bool {
	if b == nil {
		return false
	}
	if b.Weight != nil {
		out.BlkioWeight = *b.Weight
	}
	if b.LeafWeight != nil {
		out.BlkioLeafWeight = *b.LeafWeight
	}
	for _, d := range b.WeightDevice {
		var weight, leaf uint16
		if d.Weight != nil {
			weight = *d.Weight
		}
		if d.LeafWeight != nil {
			leaf = *d.LeafWeight
		}
		out.BlkioWeightDevice = append(out.BlkioWeightDevice, cgroups.NewWeightDevice(d.Major, d.Minor, weight, leaf))
	}
	out.BlkioThrottleReadBpsDevice = throttlesOf(b.ThrottleReadBpsDevice)
	out.BlkioThrottleWriteBpsDevice = throttlesOf(b.ThrottleWriteBpsDevice)
	out.BlkioThrottleReadIOPSDevice = throttlesOf(b.ThrottleReadIOPSDevice)
	out.BlkioThrottleWriteIOPSDevice = throttlesOf(b.ThrottleWriteIOPSDevice)
	return out.BlkioWeight != 0 || len(out.BlkioWeightDevice)+len(b.ThrottleReadBpsDevice)+
		len(b.ThrottleWriteBpsDevice)+len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0
}

func throttlesOf(in []specs.LinuxThrottleDevice) []*cgroups.ThrottleDevice {
	var out []*cgroups.ThrottleDevice
	for _, d := range in {
		out = append(out, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
	}
	return out
}

// unifiedOf keeps the cgroup v2 settings that hold the hypervisor as well as the
// container, widened by the overhead where they bound an amount.
func unifiedOf(in map[string]string, over Overhead) (map[string]string, error) {
	extra := map[string]int64{
		"memory.max": over.MemoryBytes, "memory.high": over.MemoryBytes, "pids.max": over.Pids,
	}
	out := map[string]string{}
	for name, value := range in {
		controller, _, _ := strings.Cut(name, ".")
		switch controller {
		case "memory", "pids", "cpu", "cpuset", "io":
		default:
			continue
		}
		// The quota waits for ApplyQuota; a group kill would take the relay too.
		if name == "cpu.max" || name == "memory.oom.group" {
			continue
		}
		if add, bounded := extra[name]; bounded && value != "max" {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("unified resource %s is %q: give a number or max", name, value)
			}
			value = strconv.FormatInt(n+add, 10)
		}
		out[name] = value
	}
	return out, nil
}
