// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"

	"github.com/nats-io/nats.go"

	"bulkhead/agent/container"
	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

// events publishes what the agent says by itself. Before the first connection and
// while there is none, events are lost on purpose: they are hints, the truth
// is in the streams and in status.
type events struct {
	mu sync.Mutex // guards nc
	nc *nats.Conn
}

func (e *events) connected(nc *nats.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.nc = nc
}

// outOfMemory tells of kills by the kernel.
func (a *agent) outOfMemory(container string, kills uint64) {
	a.events.mu.Lock()
	nc := a.events.nc
	a.events.mu.Unlock()
	if nc == nil {
		return
	}
	if err := bus.PublishAgentEvent(nc, a.sandbox, "oom", &agentv1.OutOfMemory{Container: container, Kills: kills}); err != nil {
		a.log.Debug("out-of-memory event not sent", "container", container, "error", err)
	}
}

// exited tells of the end of a process.
func (a *agent) exited(x container.Exited) {
	a.events.mu.Lock()
	nc := a.events.nc
	a.events.mu.Unlock()
	if nc == nil {
		return
	}
	event := &agentv1.Exited{Container: x.Container, ExecId: x.ExecID, ExitCode: int32(x.Code), OomKilled: x.OOMKilled}
	if err := bus.PublishAgentEvent(nc, a.sandbox, "exited", event); err != nil {
		a.log.Debug("exit event not sent", "container", x.Container, "error", err)
	}
}
