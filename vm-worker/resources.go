// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	"bulkhead/vm-worker/hostcgroup"
)

// resourcesText is how a container's limits are recorded: as JSON, without the
// device rules, which do not change.
func resourcesText(r *specs.LinuxResources) (string, error) {
	kept := specs.LinuxResources{}
	if r != nil {
		kept = *r
		kept.Devices = nil
	}
	text, err := json.Marshal(&kept)
	if err != nil {
		return "", fmt.Errorf("encode the container's resources: %w", err)
	}
	return string(text), nil
}

// parseResources reads the limits of a request or of a record.
func parseResources(text string) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{}
	if text == "" {
		return r, nil
	}
	if err := json.Unmarshal([]byte(text), r); err != nil {
		return nil, bus.Errorf(bus.InvalidArgument, "resources are not those of a runtime-spec config: %w", err)
	}
	r.Devices = nil
	return r, nil
}

// merged is old with what patch sets. A zero and what is absent stay as they
// are, as engines write zeros for all they do not change; -1 takes a limit away.
func merged(old, patch *specs.LinuxResources) (*specs.LinuxResources, error) {
	r := *old
	r.Memory = mergedMemory(old.Memory, patch.Memory)
	r.CPU = mergedCPU(old.CPU, patch.CPU)
	if p := patch.Pids; p != nil && p.Limit != nil && *p.Limit != 0 {
		r.Pids = &specs.LinuxPids{Limit: p.Limit}
	}
	r.BlockIO = mergedBlockIO(old.BlockIO, patch.BlockIO)
	r.HugepageLimits = slices.Clone(old.HugepageLimits)
	for _, l := range patch.HugepageLimits {
		if l.Limit == 0 {
			continue
		}
		r.HugepageLimits = slices.DeleteFunc(r.HugepageLimits, func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == l.Pagesize })
		r.HugepageLimits = append(r.HugepageLimits, l)
	}
	if len(patch.Unified) > 0 {
		r.Unified = maps.Clone(old.Unified)
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		maps.Copy(r.Unified, patch.Unified)
	}
	if m := r.Memory; m != nil && value(m.Limit) > 0 && value(m.Swap) > 0 && *m.Swap < *m.Limit {
		return nil, bus.Errorf(bus.InvalidArgument, "memory and swap together (%d bytes) must not be limited below memory alone (%d bytes): set both", *m.Swap, *m.Limit)
	}
	return &r, nil
}

// set replaces *to by an asked value, unless that is nil or zero.
func set[T comparable](to **T, asked *T) {
	var zero T
	if asked != nil && *asked != zero {
		*to = asked
	}
}

func value[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

func mergedMemory(old, patch *specs.LinuxMemory) *specs.LinuxMemory {
	if patch == nil {
		return old
	}
	m := specs.LinuxMemory{}
	if old != nil {
		m = *old
	}
	set(&m.Limit, patch.Limit)
	set(&m.Reservation, patch.Reservation)
	set(&m.Swap, patch.Swap)
	m.CheckBeforeUpdate = patch.CheckBeforeUpdate
	if value(patch.Swap) == 0 && value(patch.Limit) != 0 && old != nil && value(old.Swap) > 0 {
		// Swap counts memory and swap together: what may be swapped stays what it was.
		m.Swap = new(int64(-1))
		if *patch.Limit > 0 {
			m.Swap = new(*patch.Limit + max(*old.Swap-value(old.Limit), 0))
		}
	}
	return &m
}

func mergedCPU(old, patch *specs.LinuxCPU) *specs.LinuxCPU {
	if patch == nil {
		return old
	}
	c := specs.LinuxCPU{}
	if old != nil {
		c = *old
	}
	set(&c.Shares, patch.Shares)
	set(&c.Quota, patch.Quota)
	set(&c.Period, patch.Period)
	if patch.Burst != nil { // zero is a value, and no engine writes it unasked
		c.Burst = patch.Burst
	}
	if patch.Idle != nil {
		c.Idle = patch.Idle
	}
	if patch.Cpus != "" {
		c.Cpus = patch.Cpus
	}
	if patch.Mems != "" {
		c.Mems = patch.Mems
	}
	return &c
}

func mergedBlockIO(old, patch *specs.LinuxBlockIO) *specs.LinuxBlockIO {
	if patch == nil {
		return old
	}
	b := specs.LinuxBlockIO{}
	if old != nil {
		b = *old
	}
	set(&b.Weight, patch.Weight) // those of single devices are not changed: the frontend refuses them
	return &b
}

// explicit is target, with the values for "no limit" written out wherever from
// has a limit and target has none: what was set has to be taken away again.
func explicit(target, from *specs.LinuxResources) *specs.LinuxResources {
	r := *target
	unset := func(to **int64, was *int64) {
		if value(was) != 0 && value(*to) == 0 {
			*to = new(int64(-1))
		}
	}
	if f := from.Memory; f != nil {
		m := value(target.Memory)
		unset(&m.Limit, f.Limit)
		unset(&m.Reservation, f.Reservation)
		unset(&m.Swap, f.Swap)
		r.Memory = &m
	}
	if f := from.CPU; f != nil {
		c := value(target.CPU)
		unset(&c.Quota, f.Quota)
		if value(f.Shares) != 0 && value(c.Shares) == 0 {
			c.Shares = new(uint64(defaultCPUShares))
		}
		if value(f.Period) != 0 && value(c.Period) == 0 {
			c.Period = new(uint64(hostcgroup.DefaultPeriod))
		}
		if f.Burst != nil && c.Burst == nil {
			c.Burst = new(uint64(0))
		}
		if f.Idle != nil && c.Idle == nil {
			c.Idle = new(int64(0))
		}
		if f.Cpus != "" && c.Cpus == "" {
			c.Cpus = fmt.Sprintf("0-%d", runtime.NumCPU()-1)
		}
		r.CPU = &c
	}
	if f := from.Pids; f != nil && value(f.Limit) != 0 && (r.Pids == nil || value(r.Pids.Limit) == 0) {
		r.Pids = &specs.LinuxPids{Limit: new(int64(-1))}
	}
	r.HugepageLimits = slices.Clone(target.HugepageLimits)
	for _, l := range from.HugepageLimits {
		if !slices.ContainsFunc(r.HugepageLimits, func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == l.Pagesize }) {
			r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: l.Pagesize, Limit: math.MaxUint64})
		}
	}
	r.Unified = maps.Clone(target.Unified)
	for name := range from.Unified {
		none := unlimited(name, target)
		if _, has := target.Unified[name]; has || none == "" {
			continue
		}
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		r.Unified[name] = none
	}
	return &r
}

// unlimited is what a setting of cgroup v2 is without a limit. It is empty for one
// that a property of r sets as well, since unified settings are written after those, and for the host's own.
func unlimited(name string, r *specs.LinuxResources) string {
	memory, cpu := value(r.Memory), value(r.CPU)
	byProperty := map[string]bool{
		"memory.max": value(memory.Limit) != 0, "memory.low": value(memory.Reservation) != 0, "memory.swap.max": value(memory.Swap) != 0,
		"cpu.max": value(cpu.Quota) != 0 || value(cpu.Period) != 0, "cpu.max.burst": cpu.Burst != nil,
		"cpu.weight": value(cpu.Shares) != 0, "cpu.weight.nice": value(cpu.Shares) != 0, "cpu.idle": cpu.Idle != nil,
		"pids.max": r.Pids != nil && value(r.Pids.Limit) != 0,
	}
	controller, setting, _ := strings.Cut(name, ".")
	switch {
	case byProperty[name] || !slices.Contains([]string{"cpu", "hugetlb", "memory", "pids"}, controller):
		return ""
	case name == "cpu.weight":
		return "100"
	case setting == "max" || setting == "high" || strings.HasSuffix(setting, ".max") || strings.HasSuffix(setting, ".high"):
		return "max"
	default: // low, min, oom.group, idle, weight.nice, max.burst
		return "0"
	}
}

// defaultCPUShares is the weight of a cgroup that asks for none, of 2 to 262144.
const defaultCPUShares = 1024

// wider has, of the limits that bound an amount, the wider of two, and is b
// otherwise: while a limit moves, both sides of the VM's border must hold what
// the other still allows.
func wider(a, b *specs.LinuxResources) *specs.LinuxResources {
	r := *b
	if b.Memory != nil {
		m, was := *b.Memory, value(a.Memory)
		widen(&m.Limit, was.Limit)
		widen(&m.Swap, was.Swap)
		r.Memory = &m
	}
	if b.Pids != nil {
		p, was := *b.Pids, value(a.Pids)
		widen(&p.Limit, was.Limit)
		r.Pids = &p
	}
	return &r
}

// widen raises *to to was; no limit is the widest.
func widen(to **int64, was *int64) {
	if value(*to) <= 0 {
		return
	}
	switch {
	case value(was) <= 0:
		*to = new(int64(-1))
	case *was > **to:
		*to = was
	}
}
