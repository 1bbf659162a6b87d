// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs2"
	"golang.org/x/sys/unix"

	vmv1 "bulkhead/proto/vm/v1"
)

// Stats reads the container's counters. A container without a process has no
// cgroup, and counts nothing.
func (c *Container) Stats() (*vmv1.ContainerStats, error) {
	s := &vmv1.ContainerStats{Hugetlb: map[string]vmv1.HugetlbStats{}}
	if _, err := os.Stat(string(c.cgroup)); err != nil {
		return s, nil
	}
	manager, err := fs2.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, string(c.cgroup))
	if err != nil {
		return nil, fmt.Errorf("reading the statistics: %w", err)
	}
	counted, err := manager.GetStats()
	if err != nil {
		return nil, fmt.Errorf("reading the statistics: %w", err)
	}
	translateStats(s, counted)
	return s, nil
}

func translateStats(s *vmv1.ContainerStats, from *cgroups.Stats) {
	cpu := from.CpuStats
	s.CPU.Usage.Total, s.CPU.Usage.Kernel, s.CPU.Usage.User = cpu.CpuUsage.TotalUsage, cpu.CpuUsage.UsageInKernelmode, cpu.CpuUsage.UsageInUsermode
	s.CPU.Throttling.Periods, s.CPU.Throttling.ThrottledPeriods = cpu.ThrottlingData.Periods, cpu.ThrottlingData.ThrottledPeriods
	s.CPU.Throttling.ThrottledTime = cpu.ThrottlingData.ThrottledTime
	s.CPU.PSI = pressure(cpu.PSI)

	memory := from.MemoryStats
	s.Memory.Cache, s.Memory.Raw, s.Memory.PSI = memory.Cache, memory.Stats, pressure(memory.PSI)
	s.Memory.Usage, s.Memory.Swap = memoryEntry(memory.Usage), memoryEntry(memory.SwapUsage)
	s.Memory.Kernel, s.Memory.KernelTCP = memoryEntry(memory.KernelUsage), memoryEntry(memory.KernelTCPUsage)

	s.Pids.Current, s.Pids.Limit = from.PidsStats.Current, from.PidsStats.Limit
	s.Blkio.IoServiceBytesRecursive = blkioEntries(from.BlkioStats.IoServiceBytesRecursive)
	s.Blkio.IoServicedRecursive = blkioEntries(from.BlkioStats.IoServicedRecursive)
	s.Blkio.PSI = pressure(from.BlkioStats.PSI)
	for size, h := range from.HugetlbStats {
		s.Hugetlb[size] = vmv1.HugetlbStats{Usage: h.Usage, Max: h.MaxUsage, Failcnt: h.Failcnt}
	}
}

func memoryEntry(m cgroups.MemoryData) vmv1.MemoryStats {
	return vmv1.MemoryStats{Limit: m.Limit, Usage: m.Usage, Max: m.MaxUsage, Failcnt: m.Failcnt}
}

func blkioEntries(from []cgroups.BlkioStatEntry) []vmv1.BlkioStats {
	var entries []vmv1.BlkioStats
	for _, e := range from {
		entries = append(entries, vmv1.BlkioStats(e))
	}
	return entries
}

func pressure(p *cgroups.PSIStats) *vmv1.PressureStats {
	if p == nil {
		return nil
	}
	return &vmv1.PressureStats{Some: vmv1.PressureData(p.Some), Full: vmv1.PressureData(p.Full)}
}

// watchOOM tells each time that the kernel has killed processes of the container
// for want of memory, until its init has ended.
func (c *Container) watchOOM(init *process) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	changes := os.NewFile(uintptr(fd), "memory.events")
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(string(c.cgroup), "memory.events"), unix.IN_MODIFY); err != nil {
		changes.Close()
		return os.NewSyscallError("inotify_add_watch", err)
	}
	c.m.waiters.Go(func() {
		<-init.done
		changes.Close() // ends the watch below
	})
	c.m.waiters.Go(func() {
		for buf := make([]byte, 4096); ; {
			if _, err := changes.Read(buf); err != nil {
				return
			}
			c.tellKills()
		}
	})
	return nil
}

// tellKills tells of kills that nobody was told of yet; the file also changes for
// other reasons. The end of the init asks for it once more, as it ends the watch.
func (c *Container) tellKills() {
	c.kills.Lock()
	defer c.kills.Unlock()
	if kills := c.cgroup.oomKills(); kills > c.kills.told {
		c.kills.told = kills
		c.m.cfg.OOMKilled(c.key, kills)
	}
}
