// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/agent/guest"
	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

var kernelRelease = guest.Release()

// identity is what makes this guest this VM; it is given once.
type identity struct {
	mu    sync.Mutex                // guards given
	given *agentv1.ConfigureRequest // without clock and entropy
}

// configure gives the guest its name, clock and randomness. The same identity may
// be given again, which sets the clock and adds entropy again; another one is refused. No container runs before
// all processors do: what a program counts first is what it keeps for good.
func (a *agent) configure(ctx context.Context, req *agentv1.ConfigureRequest) (*agentv1.ConfigureReply, error) {
	a.identity.mu.Lock()
	defer a.identity.mu.Unlock()
	if req.GetVm() != a.sandbox {
		return nil, bus.Errorf(bus.FailedPrecondition, "this guest is %q already and cannot become %q", a.sandbox, req.GetVm())
	}
	who := &agentv1.ConfigureRequest{Vm: req.GetVm(), Hostname: req.GetHostname()}
	if a.identity.given != nil && !proto.Equal(a.identity.given, who) {
		return nil, bus.Errorf(bus.FailedPrecondition, "this guest is %q already and cannot become %q", a.identity.given.GetVm(), req.GetVm())
	}
	if len(req.GetEntropy()) > 0 {
		if err := guest.AddEntropy(req.GetEntropy()); err != nil {
			return nil, err
		}
	}
	if req.GetUnixNanos() > 0 {
		if err := guest.SetClock(time.Unix(0, req.GetUnixNanos())); err != nil {
			return nil, err
		}
	}
	if req.GetHostname() != "" {
		if err := guest.SetHostname(req.GetHostname()); err != nil {
			return nil, err
		}
	}
	if req.GetVcpus() > 0 {
		if err := guest.SetProcessors(ctx, int(req.GetVcpus())); err != nil {
			return nil, err
		}
		if err := a.network.Spread(int(req.GetVcpus())); err != nil {
			return nil, err
		}
	}
	if m := req.GetMemory(); m != nil {
		if err := a.setMemory(m); err != nil {
			return nil, err
		}
	}
	a.identity.given = who
	return &agentv1.ConfigureReply{Kernel: kernelRelease}, nil
}

// resize follows a change of the machine.
func (a *agent) resize(ctx context.Context, req *agentv1.ResizeRequest) (*agentv1.ResizeReply, error) {
	if err := guest.SetProcessors(ctx, int(req.GetVcpus())); err != nil {
		return nil, err
	}
	if err := a.network.Spread(int(req.GetVcpus())); err != nil {
		return nil, err
	}
	if m := req.GetMemory(); m != nil {
		return &agentv1.ResizeReply{}, a.setMemory(m)
	}
	total, _ := guest.Memory()
	return &agentv1.ResizeReply{}, guest.AllowHugePages(total, false)
}
