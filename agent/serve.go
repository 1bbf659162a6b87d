// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	"bulkhead/bus/link"
	"bulkhead/bus/version"
	agentv1 "bulkhead/proto/agent/v1"
)

// serveRequests is a bus client over the control port, for ever: the host opens
// sessions when it likes, and each becomes a connection. Before the first there is
// nothing of a bus client: it belongs to a sandbox, and this may become a template. It ends with the
// context or with the port itself.
func (a *agent) serveRequests(ctx context.Context, ctl *link.Listener) error {
	defer ctl.Close()
	first, err := a.greeted(ctx, ctl)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("the control port failed: %w", err)
	}
	dead := make(chan error, 1)
	dial := func(context.Context) (net.Conn, error) {
		if conn := first; conn != nil {
			first = nil
			return conn, nil
		}
		conn, err := a.greeted(ctx, ctl)
		if err != nil {
			// The bus client would try again for ever; a port does not come back.
			select {
			case dead <- err:
			default:
			}
			return nil, err
		}
		return conn, nil
	}
	// Once there is a connection it lives until the last answers have gone over it, beyond the end of ctx.
	life, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	connected := context.AfterFunc(ctx, hangUp)
	nc, err := a.connect(life, dial, dead)
	if err != nil {
		return err
	}
	defer nc.Close()
	connected()
	server, err := a.register(nc)
	if err != nil {
		return err
	}
	a.events.connected(nc)
	nc.SetReconnectHandler(a.ready)
	a.ready(nc)
	select {
	case <-ctx.Done():
	case err = <-dead:
		err = fmt.Errorf("the control port failed: %w", err)
		// Nothing can be answered any more; waiting for what the bus still holds would delay the machine's end.
		nc.Close()
	}
	return errors.Join(err, a.stop(ctx, server))
}

// stop ends the requests under way. It does not wait for one that hangs, on a
// share for instance: the machine's end is the end of that as well.
func (a *agent) stop(ctx context.Context, server *bus.AgentServer) error {
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- server.Stop(stopping) }()
	select {
	case err := <-stopped:
		return err
	case <-stopping.Done():
		return fmt.Errorf("requests are still under way: %w", stopping.Err())
	}
}

// connect makes the first connection. A session that breaks before the bus has
// answered is followed by the next one; only a dead port ends the attempts.
func (a *agent) connect(ctx context.Context, dial func(context.Context) (net.Conn, error), dead <-chan error) (*nats.Conn, error) {
	for {
		nc, err := bus.ConnectGuest(ctx, a.sandbox, dial)
		if err == nil {
			return nc, nil
		}
		select {
		case portErr := <-dead:
			return nil, fmt.Errorf("the control port failed: %w", portErr)
		default:
			a.log.Warn("bus connection failed, waiting for the host's next session", "error", err)
		}
	}
}

// ready tells the host that requests are served from now on.
func (a *agent) ready(nc *nats.Conn) {
	event := &agentv1.Ready{
		Kernel:        kernelRelease,
		Version:       version.Version,
		UptimeSeconds: a.begun,
		Containers:    a.containers.Keys(),
	}
	if err := bus.PublishAgentEvent(nc, a.sandbox, "ready", event); err != nil {
		a.log.Warn("cannot announce readiness", "error", err)
	}
}

// register subscribes every method of the contract.
func (a *agent) register(nc *nats.Conn) (*bus.AgentServer, error) {
	s := bus.NewAgentServer(nc, a.sandbox, bus.AgentLog(a.log))
	err := errors.Join(
		handle(s, "configure", a.configure),
		handle(s, "resize", a.resize),
		handle(s, "network", a.setNetwork),
		handle(s, "memory", a.changeMemory),
		handle(s, "create", a.create),
		handle(s, "start", a.start),
		handle(s, "exec", a.exec),
		handle(s, "signal", a.signal),
		handle(s, "update", a.update),
		handle(s, "pause", a.pause),
		handle(s, "resume", a.resume),
		handle(s, "delete", a.delete),
		handle(s, "status", a.status),
		handle(s, "stats", a.stats),
	)
	if err != nil {
		return nil, err
	}
	// Ready means that requests arrive: the subscriptions must have reached the bus.
	return s, nc.Flush()
}

// handle adds a method whose errors carry the reasons of the bus.
func handle[Req, Resp proto.Message](s *bus.AgentServer, method string, fn func(context.Context, Req) (Resp, error)) error {
	return bus.HandleAgent(s, method, func(ctx context.Context, req Req) (Resp, error) {
		resp, err := fn(ctx, req)
		return resp, reason(err)
	})
}
