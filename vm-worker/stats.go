// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"encoding/json"
	"fmt"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// stats says what a container costs: its VM and relay on the host, and the
// container itself as its guest sees it.
func (w *Worker) stats(ctx context.Context, req *vmv1.StatsRequest) (*vmv1.StatsReply, error) {
	if req.GetRef().GetId() == "" && req.GetRef().GetRoot() == "" {
		return w.memoryOfAll(ctx, req.After)
	}
	c, err := w.find(req.Ref)
	if err != nil {
		return nil, err
	}
	rec := c.snapshot()
	if !live(rec.Status) {
		return nil, bus.Errorf(bus.FailedPrecondition, "container not running")
	}
	reply := &vmv1.StatsReply{Sandbox: c.sb.id}
	if reply.Memory, err = c.sb.memory(); err != nil {
		return nil, err
	}
	relay, err := readFields(fmt.Sprintf("/proc/%d/smaps_rollup", rec.Relay.Pid))
	if err != nil {
		return nil, err
	}
	reply.VmRssBytes, reply.VmPssBytes, reply.RelayPssBytes = reply.Memory.RssBytes, reply.Memory.PssBytes, relay["Pss"]

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
	setGuest(reply.Memory, guest, c.sb.mostMemory())
	reply.GuestMemoryBytes, reply.GuestCpuNs, reply.GuestPids = guest.MemoryBytes, guest.CpuNs, guest.Pids
	return reply, nil
}
