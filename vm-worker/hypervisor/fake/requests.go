// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	"bulkhead/vm-worker/hypervisor"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func (g *guest) configure(_ context.Context, req *agentv1.ConfigureRequest) (*agentv1.ConfigureReply, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	who := req.GetVm() + " " + req.GetHostname()
	if g.configured != "" && g.configured != who {
		return nil, bus.Errorf(bus.FailedPrecondition, "this guest is %q already and cannot become %q", g.configured, who)
	}
	g.configured, g.vcpus = who, req.GetVcpus()
	g.memory = &agentv1.MemoryRequest{Memory: req.GetMemory()}
	return &agentv1.ConfigureReply{Kernel: kernelRelease}, nil
}

// resize notes the processors: a fake guest runs on its host's.
func (g *guest) resize(_ context.Context, req *agentv1.ResizeRequest) (*agentv1.ResizeReply, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.vcpus = req.GetVcpus()
	g.memory = &agentv1.MemoryRequest{Memory: req.GetMemory()}
	return &agentv1.ResizeReply{}, nil
}

// setNetwork takes a network whose cards the machine has, and says that the kernel has all of it.
func (g *guest) setNetwork(ctx context.Context, req *agentv1.NetworkRequest) (*agentv1.NetworkReply, error) {
	nics, err := g.nics(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range req.GetNics() {
		if !slices.ContainsFunc(nics, func(p hypervisor.PluggedNIC) bool { return p.MAC == n.GetMac() }) {
			return nil, bus.Errorf(bus.DeadlineExceeded, "no network card %s appears", n.GetMac())
		}
	}
	if g.refuseNetwork != nil {
		if err := g.refuseNetwork(req); err != nil {
			return nil, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.network = req
	return &agentv1.NetworkReply{Revision: req.GetRevision(), Network: req.GetNetwork()}, nil
}

// changeMemory notes what it is told: a fake guest uses none.
func (g *guest) changeMemory(_ context.Context, req *agentv1.MemoryRequest) (*agentv1.MemoryReply, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if req.GetAsk() { // it offers what it does not want, until it wants something else
		return &agentv1.MemoryReply{Agreed: req.GetNumber() == g.wish}, nil
	}
	g.memory = req
	return &agentv1.MemoryReply{}, nil
}

func (g *guest) create(_ context.Context, req *agentv1.CreateRequest) (*agentv1.CreateReply, error) {
	var spec specs.Spec
	if err := json.Unmarshal([]byte(req.GetConfig()), &spec); err != nil {
		return nil, bus.Errorf(bus.InvalidArgument, "reading the configuration: %w", err)
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		return nil, bus.Errorf(bus.InvalidArgument, "the configuration names no process")
	}
	key := req.GetContainer()
	if _, err := g.find(key); err == nil {
		return nil, bus.Errorf(bus.AlreadyExists, "container %s exists", key)
	}
	p, err := g.newProcess(key, "", req.GetChannel(), spec.Process.Terminal, spec.Process.Args, spec.Process.Env)
	if err != nil {
		return nil, bus.Errorf(bus.Internal, "%w", err)
	}
	c := &container{key: key, init: p, execs: map[string]*process{}}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.containers[key] = c
	return &agentv1.CreateReply{Pid: p.pid}, nil
}

func (g *guest) start(_ context.Context, req *agentv1.StartRequest) (*agentv1.StartReply, error) {
	c, err := g.find(req.GetContainer())
	if err != nil {
		return nil, err
	}
	if s := c.status(); s != created {
		return nil, bus.Errorf(bus.FailedPrecondition, "cannot start container %s, it is %s", c.key, s)
	}
	c.init.begin()
	return &agentv1.StartReply{}, nil
}

func (g *guest) exec(_ context.Context, req *agentv1.ExecRequest) (*agentv1.ExecReply, error) {
	c, err := g.find(req.GetContainer())
	if err != nil {
		return nil, err
	}
	if s := c.status(); s == stopped || s == paused && !req.GetIgnorePaused() {
		return nil, bus.Errorf(bus.FailedPrecondition, "cannot exec in container %s, it is %s", c.key, s)
	}
	var process specs.Process
	if err := json.Unmarshal([]byte(req.GetProcess()), &process); err != nil || len(process.Args) == 0 {
		return nil, bus.Errorf(bus.InvalidArgument, "the process of exec %q is not understood", req.GetExecId())
	}
	p, err := g.newProcess(c.key, req.GetExecId(), req.GetChannel(), process.Terminal, process.Args, process.Env)
	if err != nil {
		return nil, bus.Errorf(bus.Internal, "%w", err)
	}
	if err := c.add(p); err != nil {
		p.kill(0)
		<-p.done
		p.stream.Close()
		return nil, err
	}
	p.begin()
	return &agentv1.ExecReply{Pid: p.pid}, nil
}

func (g *guest) signal(_ context.Context, req *agentv1.SignalRequest) (*agentv1.SignalReply, error) {
	c, err := g.find(req.GetContainer())
	if err != nil {
		return nil, err
	}
	if req.GetAll() {
		for _, p := range c.processes() {
			if !p.ended() {
				p.signal(int(req.GetSignal()))
			}
		}
		return &agentv1.SignalReply{}, nil
	}
	p, err := c.find(req.GetExecId())
	if err != nil {
		return nil, err
	}
	p.signal(int(req.GetSignal()))
	return &agentv1.SignalReply{}, nil
}

// update notes the limits: a fake process has none to meet.
func (g *guest) update(_ context.Context, req *agentv1.UpdateRequest) (*agentv1.UpdateReply, error) {
	c, err := g.find(req.GetContainer())
	if err != nil {
		return nil, err
	}
	if c.status() == stopped {
		return nil, bus.Errorf(bus.FailedPrecondition, "container %s is %s", c.key, stopped)
	}
	if g.refuse != nil {
		if err := g.refuse(req.GetResources()); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resources = req.GetResources()
	return &agentv1.UpdateReply{}, nil
}

func (g *guest) pause(_ context.Context, req *agentv1.PauseRequest) (*agentv1.PauseReply, error) {
	return &agentv1.PauseReply{}, g.setPaused(req.GetContainer(), true, running, created)
}

func (g *guest) resume(_ context.Context, req *agentv1.ResumeRequest) (*agentv1.ResumeReply, error) {
	return &agentv1.ResumeReply{}, g.setPaused(req.GetContainer(), false, paused)
}

// setPaused changes the state only: a fake process has nothing to stop.
func (g *guest) setPaused(key string, to bool, from ...string) error {
	c, err := g.find(key)
	if err != nil {
		return err
	}
	if s := c.status(); !slices.Contains(from, s) {
		return bus.Errorf(bus.FailedPrecondition, "container %s is %s, not %s", key, s, from[0])
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = to
	return nil
}

func (g *guest) delete(_ context.Context, req *agentv1.DeleteRequest) (*agentv1.DeleteReply, error) {
	g.mu.Lock()
	c := g.containers[req.GetContainer()]
	delete(g.containers, req.GetContainer())
	g.mu.Unlock()
	if c != nil {
		c.end(137)
	}
	return &agentv1.DeleteReply{}, nil
}

func (g *guest) status(context.Context, *agentv1.StatusRequest) (*agentv1.StatusReply, error) {
	g.mu.Lock()
	containers := make([]*container, 0, len(g.containers))
	for _, c := range g.containers {
		containers = append(containers, c)
	}
	g.mu.Unlock()
	reply := &agentv1.StatusReply{}
	for _, c := range containers {
		info := &agentv1.ContainerInfo{Container: c.key, Status: c.status()}
		for _, p := range c.processes() {
			code, exited := p.exitCode()
			info.Processes = append(info.Processes, &agentv1.Process{
				ExecId: p.execID, Channel: p.channel, Pid: p.pid, Exited: exited, ExitCode: int32(code),
			})
		}
		reply.Containers = append(reply.Containers, info)
	}
	return reply, nil
}

func (g *guest) stats(_ context.Context, req *agentv1.StatsRequest) (*agentv1.StatsReply, error) {
	const total, available = 64 << 20, 32 << 20
	if req.GetContainer() == "" {
		return &agentv1.StatsReply{GuestTotalBytes: total, GuestAvailableBytes: available}, nil
	}
	c, err := g.find(req.GetContainer())
	if err != nil {
		return nil, err
	}
	n := uint64(len(c.processes()))
	return &agentv1.StatsReply{Pids: n, GuestTotalBytes: total, GuestAvailableBytes: available, Stats: fmt.Sprintf(`{"pids":{"current":%d}}`, n)}, nil
}

func (g *guest) find(key string) (*container, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.containers[key]
	if c == nil {
		return nil, bus.Errorf(bus.NotFound, "container %s does not exist", key)
	}
	return c, nil
}
