// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package router moves the frames of bus/stdio between one VM's guest link and
// the relays of its container processes. It keeps no bytes that matter: what
// it drops, the two ends repeat after a SYNC, so it may end and begin anew at
// any time.
//
// The guest is hostile: each of its frames is checked against the channel it
// names and against the window that the relay has granted, and a guest that
// breaks the rules or floods loses its session. A relay is the host's own, but
// may be stopped or slow: its queue is bounded, and no other relay waits for it.
//
// It imports bus/stdio and hclog. The invariant: nothing that one relay does or
// does not do holds up the reading of the guest link.
package router

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/hashicorp/go-hclog"

	"bulkhead/bus/stdio"
)

// Config configures a Router.
type Config struct {
	Log hclog.Logger
	// OnExit is told once per channel that the guest reported a process's exit,
	// before its relay is told. Output may still be on its way to the relay. The
	// guest waits meanwhile, so it must be quick; after an OOM kill (oom) it may
	// take the moment that telling the engine's side of the host takes.
	OnExit func(channel uint32, code int, oom bool)
	// OnRelayLost is told that a relay's connection has ended other than by
	// Attach, Detach or Close: mostly its process is dead. finished says that
	// it had delivered the exit. It must not block.
	OnRelayLost func(channel uint32, finished bool)
}

var (
	// ErrViolation ends ServeGuest: the guest broke the rules.
	ErrViolation = errors.New("the guest broke the rules of the stdio link")
	// ErrNotAttached reports a channel without a relay.
	ErrNotAttached = errors.New("no relay is attached to the channel")
	// ErrClosed reports a router that has been closed.
	ErrClosed = errors.New("the stdio router is closed")
)

// keepFinished is how many finished channels are remembered, to answer an
// agent that missed the end.
const keepFinished = 1024

// Router is the switch of one VM.
type Router struct {
	cfg     Config
	running sync.WaitGroup // readers and writers of relays

	mu       sync.Mutex // guards all below, and every channel's state
	channels map[uint32]*channel
	finished []uint32 // oldest first
	guest    *guestConn
	gone     []byte // GONE, once the VM is dead
	closed   bool
}

// channel is what the router knows of one process's streams.
type channel struct {
	id       uint32
	relay    *relayConn // nil while none is connected
	granted  [3]window  // by the relay of this connection, per output stream
	sent     [3]uint64  // end of what the guest has sent, per output stream
	exited   bool
	finished bool // the relay has acknowledged the exit
	detached bool // the relay will never come back
}

// window is what a relay has granted the guest.
type window struct {
	known bool
	limit uint64
}

// New makes a router without relays and without a guest.
func New(cfg Config) *Router {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	return &Router{cfg: cfg, channels: make(map[uint32]*channel)}
}

// Attach connects to the relay that listens on socket and makes it the end of
// the channel. qemu, if not nil, is a pidfd of the VM's process, of which the
// relay gets a duplicate. An earlier connection of the channel is dropped.
func (r *Router) Attach(ctx context.Context, id uint32, socket string, qemu *os.File) error {
	c, err := dialRelay(ctx, socket, qemu)
	if err != nil {
		return fmt.Errorf("attaching channel %d to the relay at %s: %w", id, socket, err)
	}
	c.router, c.channel = r, id
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		c.conn.Close()
		return ErrClosed
	}
	ch := r.channels[id]
	if ch == nil {
		ch = &channel{id: id}
		r.channels[id] = ch
	}
	if ch.relay != nil {
		ch.relay.close()
	}
	ch.relay, ch.detached, ch.granted = c, false, [3]window{}
	// The relay restates itself by itself to whoever connects; only the guest has to be asked.
	if r.gone != nil {
		c.enqueue(r.gone)
	}
	r.guest.control(stdio.AppendSimple(nil, stdio.TypeSync, 0, id, 0))
	r.running.Add(2)
	go c.read()
	go c.write()
	return nil
}

// Detach says that the channel's relay is dead and will not come back: the
// agent is told to throw its output away, and not to wait for the relay to have heard of
// the exit. A relay that ends right after it has said so may be seen dead before it is heard.
func (r *Router) Detach(id uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := r.channels[id]
	if ch == nil {
		ch = &channel{id: id}
		r.channels[id] = ch
	}
	if ch.relay != nil {
		ch.relay.close()
		ch.relay = nil
	}
	if ch.detached || ch.finished {
		return
	}
	ch.detached = true
	r.remember(id)
	r.abandon(r.guest, ch)
}

// abandon tells the guest that nobody hears of a channel any more. One that has exited
// need not be kept there; of another the exit is answered when it comes.
func (r *Router) abandon(g *guestConn, ch *channel) {
	g.control(stdio.AppendGone(nil, ch.id, 0, ""))
	if ch.exited {
		g.control(stdio.AppendSimple(nil, stdio.TypeExitAck, 0, ch.id, 0))
	}
}

// remember puts id among the finished channels and forgets the oldest.
func (r *Router) remember(id uint32) {
	r.finished = append(r.finished, id)
	if len(r.finished) <= keepFinished {
		return
	}
	oldest := r.channels[r.finished[0]]
	r.finished = r.finished[:copy(r.finished, r.finished[1:])]
	if oldest != nil && oldest.relay == nil && (oldest.finished || oldest.detached) {
		delete(r.channels, oldest.id)
	}
}

// Gone tells every relay, also those that attach later, that the VM is dead.
func (r *Router) Gone(code int, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = stdio.AppendGone(nil, 0, code&0xff, reason)
	for _, ch := range r.channels {
		if ch.relay != nil {
			ch.relay.enqueue(r.gone)
		}
	}
}

// Signal has the channel's relay deliver a signal as if it had been sent to
// its pid: once, and in order with those.
func (r *Router) Signal(id uint32, n int) error {
	if n < 1 || n > 64 {
		return fmt.Errorf("signalling channel %d: %d is no signal", id, n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := r.channels[id]
	if ch == nil || ch.relay == nil {
		return fmt.Errorf("signalling channel %d: %w", id, ErrNotAttached)
	}
	if !ch.relay.enqueue(stdio.AppendSignal(nil, id, 0, n)) {
		return fmt.Errorf("signalling channel %d: the relay does not take its frames", id)
	}
	return nil
}

// Close drops every connection and waits for their goroutines. Relays wait for
// the next router.
func (r *Router) Close() {
	r.mu.Lock()
	r.closed = true
	for _, ch := range r.channels {
		if ch.relay != nil {
			ch.relay.close()
		}
	}
	guest := r.guest
	r.mu.Unlock()
	if guest != nil {
		guest.session.Close()
		<-guest.done
	}
	r.running.Wait()
}
