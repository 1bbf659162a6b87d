// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hostcgroup

import (
	"fmt"
	"maps"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// quota is the CPU bandwidth a bundle asks for.
type quota struct {
	Quota  int64   `json:"quota,omitempty"`  // µs per period; 0: none asked
	Period uint64  `json:"period,omitempty"` // µs; 0: the kernel's
	Burst  *uint64 `json:"burst,omitempty"`  // µs
	Max    string  `json:"max,omitempty"`    // cpu.max among unified resources
}

// DefaultPeriod is what the kernel uses when a quota comes without a period, in µs (Documentation/scheduler/sched-bwc.rst).
const DefaultPeriod = 100_000

func quotaOf(r *specs.LinuxResources) quota {
	var q quota
	if r == nil {
		return q
	}
	q.Max = r.Unified["cpu.max"]
	c := r.CPU
	if c == nil {
		return q
	}
	if c.Quota != nil {
		q.Quota = *c.Quota
	}
	if c.Period != nil {
		q.Period = *c.Period
	}
	q.Burst = c.Burst
	return q
}

// ApplyQuota sets the CPU bandwidth. It is a step of its own because booting a
// guest is not the container's work: a container of 0.1 CPU would wait ten
// times as long for its VM. Call it once the container exists.
func (c *Cgroup) ApplyQuota() error {
	q := c.state.Quota
	if c.manager == nil || (q.Quota == 0 && q.Period == 0 && q.Max == "") {
		return nil
	}
	r := c.state.withQuota()
	if err := c.manager.Set(r); err != nil {
		return fmt.Errorf("setting the CPU quota of a container: %w", err)
	}
	return nil
}

// withQuota are all limits, the CPU bandwidth among them.
func (s *state) withQuota() *cgroups.Resources {
	r, q := *s.Config.Resources, s.Quota
	r.CpuQuota, r.CpuPeriod, r.CpuBurst = q.Quota, q.Period, q.Burst
	if q.Max != "" && cgroups.IsCgroup2UnifiedMode() {
		r.Unified = maps.Clone(r.Unified)
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		r.Unified["cpu.max"] = q.Max
	}
	return &r
}
