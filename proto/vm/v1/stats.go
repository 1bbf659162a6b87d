// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmv1

import (
	"encoding/json"
	"fmt"
	"strings"
)

// ContainerStats are a container's counters as its guest's cgroup has them, in
// the shape in which runc prints them (runc, types/events.go).
type ContainerStats struct {
	CPU struct {
		Usage struct {
			Total  uint64 `json:"total,omitempty"` // nanoseconds
			Kernel uint64 `json:"kernel"`
			User   uint64 `json:"user"`
		} `json:"usage"`
		Throttling struct {
			Periods          uint64 `json:"periods,omitempty"`
			ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
			ThrottledTime    uint64 `json:"throttledTime,omitempty"` // nanoseconds
		} `json:"throttling"`
		PSI *PressureStats `json:"psi,omitempty"`
	} `json:"cpu"`
	Memory struct {
		Cache     uint64            `json:"cache,omitempty"`
		Usage     MemoryStats       `json:"usage"`
		Swap      MemoryStats       `json:"swap"` // memory and swap together
		Kernel    MemoryStats       `json:"kernel"`
		KernelTCP MemoryStats       `json:"kernelTCP"`
		Raw       map[string]uint64 `json:"raw,omitempty"` // memory.stat
		PSI       *PressureStats    `json:"psi,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"` // 0: none
	} `json:"pids"`
	Blkio struct {
		IoServiceBytesRecursive []BlkioStats   `json:"ioServiceBytesRecursive,omitempty"`
		IoServicedRecursive     []BlkioStats   `json:"ioServicedRecursive,omitempty"`
		PSI                     *PressureStats `json:"psi,omitempty"`
	} `json:"blkio"`
	Hugetlb           map[string]HugetlbStats `json:"hugetlb"`
	IntelRdt          struct{}                `json:"intel_rdt"` // of the host's processor, and never any
	NetworkInterfaces []InterfaceStats        `json:"network_interfaces"`
}

// MemoryStats are bytes; a limit of 1<<64-1 is none.
type MemoryStats struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

// BlkioStats count the guest's own block devices.
type BlkioStats struct {
	Major uint64 `json:"major,omitempty"`
	Minor uint64 `json:"minor,omitempty"`
	Op    string `json:"op,omitempty"`
	Value uint64 `json:"value,omitempty"`
}

// HugetlbStats are bytes of one page size.
type HugetlbStats struct {
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

// InterfaceStats are of one of the guest's network interfaces but loopback.
type InterfaceStats struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// PressureStats are those of Documentation/accounting/psi.rst.
type PressureStats struct {
	Some PressureData `json:"some"`
	Full PressureData `json:"full"`
}

// PressureData are shares of time in percent, and microseconds.
type PressureData struct {
	Avg10  float64 `json:"avg10"`
	Avg60  float64 `json:"avg60"`
	Avg300 float64 `json:"avg300"`
	Total  uint64  `json:"total"`
}

// What a guest may tell; a real one stays far below.
const (
	maxStatsText = 64 << 10
	maxStatsName = 64
)

// ReadContainerStats reads what a guest tells, which may be anything: numbers
// stay numbers, and names are short and plain.
func ReadContainerStats(text string) (*ContainerStats, error) {
	if len(text) > maxStatsText {
		return nil, fmt.Errorf("the guest's statistics have %d bytes, and at most %d are read", len(text), maxStatsText)
	}
	s := &ContainerStats{}
	if err := json.Unmarshal([]byte(text), s); err != nil {
		return nil, fmt.Errorf("the guest's statistics are not understood: %w", err)
	}
	names := make([]string, 0, len(s.Memory.Raw))
	for name := range s.Memory.Raw {
		names = append(names, name)
	}
	for name := range s.Hugetlb {
		names = append(names, name)
	}
	for _, i := range s.NetworkInterfaces {
		names = append(names, i.Name)
	}
	for _, b := range append(s.Blkio.IoServiceBytesRecursive, s.Blkio.IoServicedRecursive...) {
		names = append(names, b.Op)
	}
	for _, name := range names {
		if len(name) > maxStatsName || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, fmt.Errorf("the guest's statistics have the name %.64q", name)
		}
	}
	return s, nil
}
