// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// stats says what a container costs: its VM and relay on the host, and the
// container itself as its guest sees it.
func (w *Worker) stats(ctx context.Context, req *vmv1.StatsRequest) (*vmv1.StatsReply, error) {
	c, err := w.find(req.Ref)
	if err != nil {
		return nil, err
	}
	rec := c.snapshot()
	if !live(rec.Status) {
		return nil, bus.Errorf(bus.FailedPrecondition, "container not running")
	}
	reply := &vmv1.StatsReply{Sandbox: c.sb.id}
	vm, err := readMemory(int(c.sb.record().Pid))
	if err != nil {
		return nil, err
	}
	relay, err := readMemory(int(rec.Relay.Pid))
	if err != nil {
		return nil, err
	}
	reply.VmRssBytes, reply.VmPssBytes, reply.RelayPssBytes = vm.rss, vm.pss, relay.pss

	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	guest, err := callAgent[agentv1.StatsReply](ctx, c.sb, "stats", &agentv1.StatsRequest{Container: c.key})
	if err != nil {
		return nil, err
	}
	counters, err := vmv1.ReadContainerStats(guest.Stats)
	if err != nil {
		return nil, bus.Errorf(bus.Unavailable, "%w", err)
	}
	text, err := json.Marshal(counters) // written anew: nothing else of what the guest wrote
	if err != nil {
		return nil, fmt.Errorf("encode the statistics: %w", err)
	}
	reply.ContainerStats = string(text)
	reply.GuestMemoryBytes, reply.GuestCpuNs, reply.GuestPids = guest.MemoryBytes, guest.CpuNs, guest.Pids
	return reply, nil
}

// memory is a process's memory in bytes, from /proc/<pid>/smaps_rollup
// (Documentation/filesystems/proc.rst).
type memory struct{ rss, pss uint64 }

func readMemory(pid int) (memory, error) {
	var m memory
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return m, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			continue // the header line
		}
		switch name {
		case "Rss":
			m.rss = kib << 10
		case "Pss":
			m.pss = kib << 10
		}
	}
	return m, nil
}
