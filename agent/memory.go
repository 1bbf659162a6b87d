// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"

	"bulkhead/agent/guest"
	"bulkhead/agent/memory"
	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

func machine(m *agentv1.Memory) memory.Machine {
	return memory.Machine{Has: m.GetHas(), Limit: m.GetLimit(), Containers: m.GetContainers(), Base: m.GetBase()}
}

// setMemory follows what the machine has become, and may become.
func (a *agent) setMemory(m *agentv1.Memory) error {
	return errors.Join(guest.ScaleParameters(m.GetLimit()), guest.AllowHugePages(m.GetLimit(), m.GetLimit() > m.GetBase()), a.memory.Set(machine(m), 0))
}

// changeMemory is the host's answer to wantMemory, or its own wish.
func (a *agent) changeMemory(_ context.Context, req *agentv1.MemoryRequest) (*agentv1.MemoryReply, error) {
	if req.GetTrim() {
		a.memory.Trim()
		return &agentv1.MemoryReply{}, nil
	}
	if req.GetAsk() {
		return &agentv1.MemoryReply{Agreed: a.memory.Agree(req.GetNumber())}, nil
	}
	m := req.GetMemory()
	if m == nil {
		return nil, bus.Errorf(bus.InvalidArgument, "a change of the memory does not tell what the machine has")
	}
	if req.GetRefused() {
		return &agentv1.MemoryReply{}, a.memory.Refused(machine(m), req.GetNumber())
	}
	return &agentv1.MemoryReply{}, a.memory.Set(machine(m), req.GetNumber())
}

// wantMemory tells the host how much memory the machine should have.
func (a *agent) wantMemory(bytes, number uint64) {
	a.events.mu.Lock()
	nc := a.events.nc
	a.events.mu.Unlock()
	if nc == nil {
		return
	}
	if err := bus.PublishAgentEvent(nc, a.sandbox, "memory", &agentv1.MemoryWanted{Bytes: bytes, Number: number}); err != nil {
		a.log.Debug("wish for memory not sent", "error", err)
	}
}
