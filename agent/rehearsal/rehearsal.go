// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package rehearsal is a host inside the guest: it has an agent make, use and remove containers, over the
// protocols that it speaks with the real host, so that nothing is done for the first time when a real container comes.
//
// Code that runs for the first time is slow: the guest reads it, and under emulation QEMU translates it. A guest
// from which others continue therefore rehearses first (docs/architecture.md, "Templates and the pool").
//
// It may import bus, its client-side packages and proto. The invariant: all that it has of the host are files that every
// guest may see, and it knows nothing that a guest without a name may not know.
package rehearsal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/bus"
	"bulkhead/bus/link"
	agentv1 "bulkhead/proto/agent/v1"
)

// name is what the agent is called meanwhile.
const name = "rehearsal"

// rounds is how many containers come and go. The last ones find everything done before.
const rounds = 3

// Ports are the host's ends of an agent's channels.
type Ports struct{ Ctl, IO net.Conn }

// Run has the agent behind the ports go through the rounds, and tells how many it has finished. Then it has the agent
// stop, which that one tells its bus, and closes the ports.
func Run(ctx context.Context, with *agentv1.Rehearsal, p Ports, stop func() error) (done int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { p.Ctl.Close(); p.IO.Close() })
	defer func() { err = errors.Join(err, stop()) }()
	ctl, err := link.Dial(ctx, p.Ctl)
	if err != nil {
		return 0, err
	}
	io, err := link.Dial(ctx, p.IO)
	if err != nil {
		return 0, err
	}
	entropy := make([]byte, 2*bus.GreetingEntropy)
	_, _ = rand.Read(entropy) // never fails
	if err := bus.Greet(ctl, &agentv1.Greeting{Vm: name, Entropy: entropy, UnixNanos: time.Now().UnixNano()}); err != nil {
		return 0, err
	}
	h := &host{with: with, bus: newBroker(ctl.NetConn()), relays: newRelays(io)}
	group, serving := errgroup.WithContext(ctx)
	group.Go(h.bus.serve)
	group.Go(h.relays.serve)
	for done = 0; done < rounds && err == nil; done++ {
		err = h.round(serving, done)
		runtime.GC() // it comes to each guest in time
	}
	if err != nil {
		done--
		if serving.Err() != nil && ctx.Err() == nil { // a channel broke, and why says more
			err = errors.Join(err, context.Cause(serving))
		}
		return done, fmt.Errorf("container %d: %w", done+1, err)
	}
	return done, nil
}
