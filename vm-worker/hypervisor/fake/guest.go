// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"bulkhead/bus"
	"bulkhead/bus/link"
	"bulkhead/bus/stdio"
	agentv1 "bulkhead/proto/agent/v1"
	"bulkhead/vm-worker/hypervisor"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
)

// kernelRelease is what fake guests report.
const kernelRelease = "0.0.0-fake"

// guest is the agent of a fake VM.
type guest struct {
	sandbox       string
	script        Script
	refuse        func(resources string) error // nil: every update is taken
	refuseNetwork func(*agentv1.NetworkRequest) error
	rehearse      func() error                                           // nil: it can
	nics          func(context.Context) ([]hypervisor.PluggedNIC, error) // of its machine
	log           hclog.Logger
	endpoint      *stdio.Endpoint
	ports         []*port
	ctx           context.Context // the guest's life
	cancel        context.CancelFunc
	running       sync.WaitGroup // everything of this guest

	mu         sync.Mutex
	nc         *nats.Conn              // guarded by mu: for events; nil before the first session
	configured string                  // guarded by mu: identity as given
	containers map[string]*container   // guarded by mu
	nextPID    int32                   // guarded by mu
	vcpus      uint32                  // guarded by mu: what it was last told to run on
	network    *agentv1.NetworkRequest // guarded by mu: the last one taken
	memory     *agentv1.MemoryRequest  // guarded by mu: what it was last told of its memory
	wish       uint64                  // guarded by mu: number of what it wanted last
}

func startGuest(s hypervisor.Spec, o Options, nics func(context.Context) ([]hypervisor.PluggedNIC, error)) (*guest, error) {
	ctx, cancel := context.WithCancel(context.Background())
	g := &guest{
		sandbox: s.ID, script: o.Script, refuse: o.UpdateError, refuseNetwork: o.NetworkError, rehearse: o.RehearsalError, nics: nics, log: o.Log.With("sandbox", s.ID), ctx: ctx, cancel: cancel,
		endpoint: stdio.NewEndpoint(stdio.EndpointConfig{}), containers: map[string]*container{}, nextPID: 1,
	}
	for _, name := range []string{"ctl", "io"} {
		p, err := newPort(s.Dir, name)
		if err != nil {
			g.stop()
			return nil, err
		}
		g.ports = append(g.ports, p)
	}
	if o.Mute {
		return g, nil
	}
	ctl, io := link.Listen(g.ports[0]), link.Listen(g.ports[1])
	g.running.Go(func() { g.serveStreams(ctx, io) })
	g.running.Go(func() { g.serveRequests(ctx, ctl) })
	return g, nil
}

// stop ends the guest as the end of a machine would: nobody is told.
func (g *guest) stop() {
	g.cancel()
	for _, p := range g.ports {
		_ = p.Close()
	}
	g.mu.Lock()
	containers := g.containers
	g.containers = map[string]*container{}
	g.mu.Unlock()
	g.running.Wait()
	for _, c := range containers {
		c.end(0) // for the streams: the processes have ended with the guest
	}
}

func (g *guest) serveStreams(ctx context.Context, io *link.Listener) {
	defer io.Close()
	for {
		session, err := io.Accept(ctx)
		if err != nil {
			return
		}
		if err := g.endpoint.Serve(ctx, session); err != nil {
			g.log.Debug("stream session ended", "error", err)
		}
	}
}

func (g *guest) serveRequests(ctx context.Context, ctl *link.Listener) {
	defer ctl.Close()
	dial := func(ctx context.Context) (net.Conn, error) {
		session, err := ctl.Accept(ctx)
		if err != nil {
			return nil, err
		}
		greeting, err := bus.Greeted(session)
		if err == nil && greeting.GetRehearse() != nil {
			err = errors.Join(errors.New("the host asked for a rehearsal"), bus.TellRehearsed(session, g.rehearsed()))
		}
		if err == nil && greeting.Vm != g.sandbox {
			err = fmt.Errorf("the guest of %s is greeted as %s", g.sandbox, greeting.Vm)
		}
		if err != nil {
			return nil, errors.Join(err, session.Close())
		}
		return session.NetConn(), nil
	}
	var nc *nats.Conn
	for nc == nil {
		var err error
		if nc, err = bus.ConnectGuest(ctx, g.sandbox, dial); err != nil {
			g.log.Debug("bus connection failed", "error", err)
			nc = nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if nc == nil {
		return
	}
	defer nc.Close()
	server, err := g.register(nc)
	if err != nil {
		g.log.Error("requests not served", "error", err)
		return
	}
	g.mu.Lock()
	g.nc = nc
	g.mu.Unlock()
	nc.SetReconnectHandler(g.ready)
	g.ready(nc)
	<-ctx.Done()
	// The machine is gone, and its requests with it.
	if err := server.Stop(ctx); err != nil {
		g.log.Debug("requests cut off", "error", err)
	}
}

// rehearsed is how its rehearsal went.
func (g *guest) rehearsed() *agentv1.Rehearsed {
	if g.rehearse == nil {
		return &agentv1.Rehearsed{}
	}
	if err := g.rehearse(); err != nil {
		return &agentv1.Rehearsed{Error: err.Error()}
	}
	return &agentv1.Rehearsed{}
}

func (g *guest) register(nc *nats.Conn) (*bus.AgentServer, error) {
	s := bus.NewAgentServer(nc, g.sandbox, bus.AgentLog(g.log))
	err := errors.Join(
		bus.HandleAgent(s, "configure", g.configure),
		bus.HandleAgent(s, "resize", g.resize),
		bus.HandleAgent(s, "network", g.setNetwork),
		bus.HandleAgent(s, "memory", g.changeMemory),
		bus.HandleAgent(s, "create", g.create),
		bus.HandleAgent(s, "start", g.start),
		bus.HandleAgent(s, "exec", g.exec),
		bus.HandleAgent(s, "signal", g.signal),
		bus.HandleAgent(s, "update", g.update),
		bus.HandleAgent(s, "pause", g.pause),
		bus.HandleAgent(s, "resume", g.resume),
		bus.HandleAgent(s, "delete", g.delete),
		bus.HandleAgent(s, "status", g.status),
		bus.HandleAgent(s, "stats", g.stats),
	)
	if err != nil {
		return nil, err
	}
	return s, nc.Flush()
}

func (g *guest) ready(nc *nats.Conn) {
	g.mu.Lock()
	keys := make([]string, 0, len(g.containers))
	for key := range g.containers {
		keys = append(keys, key)
	}
	g.mu.Unlock()
	event := &agentv1.Ready{Kernel: kernelRelease, Version: "fake", Containers: keys}
	if err := bus.PublishAgentEvent(nc, g.sandbox, "ready", event); err != nil {
		g.log.Warn("readiness not announced", "error", err)
	}
}

// exited tells the host of a process's end.
func (g *guest) exited(container, execID string, code int) {
	g.mu.Lock()
	nc := g.nc
	g.mu.Unlock()
	if nc == nil {
		return
	}
	event := &agentv1.Exited{Container: container, ExecId: execID, ExitCode: int32(code)}
	if err := bus.PublishAgentEvent(nc, g.sandbox, "exited", event); err != nil {
		g.log.Debug("exit not announced", "error", err)
	}
}

// outOfMemory tells the host of kills by the guest's kernel.
func (g *guest) outOfMemory(container string, kills uint64) {
	g.mu.Lock()
	nc := g.nc
	g.mu.Unlock()
	if nc == nil {
		return
	}
	if err := bus.PublishAgentEvent(nc, g.sandbox, "oom", &agentv1.OutOfMemory{Container: container, Kills: kills}); err != nil {
		g.log.Debug("kill not announced", "container", container, "error", err)
	}
}
