// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"fmt"
	"sync"
	"time"

	"bulkhead/bus/stdio"
)

const (
	// strayMax bounds the frames for channels without a relay in one session.
	// Honest ones are what was on its way when a relay left.
	strayMax = 1 << 18
	// controlQueue bounds the router's own words to the guest that wait.
	controlQueue = 4096
)

// guestConn is one session with the guest.
type guestConn struct {
	session stdio.Session
	done    chan struct{} // closed when ServeGuest has ended
	wake    chan struct{} // capacity 1: own is not empty

	mu  sync.Mutex // guards own
	own [][]byte   // the router's own frames that wait

	stray int
	pace  pace
}

// send passes a frame to the guest. It blocks while the link is full; errors
// end the session's reader, which reports them.
func (g *guestConn) send(frame []byte) {
	if err := g.session.Send(frame); err != nil {
		g.session.Close()
	}
}

// control queues a frame of the router's own. It never blocks; on a nil guest it does nothing.
func (g *guestConn) control(frame []byte) {
	if g == nil {
		return
	}
	g.mu.Lock()
	full := len(g.own) >= controlQueue
	if !full {
		g.own = append(g.own, frame)
	}
	g.mu.Unlock()
	if full {
		// A guest that takes nothing: let its session end and begin anew.
		go g.session.Close()
		return
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// sendOwn sends the router's own frames until ctx ends.
func (g *guestConn) sendOwn(ctx context.Context) {
	for {
		select {
		case <-g.wake:
		case <-ctx.Done():
			return
		}
		for frame := g.next(); frame != nil && ctx.Err() == nil; frame = g.next() {
			g.send(frame)
		}
	}
}

// next takes the oldest frame of the router's own; nil when there is none.
func (g *guestConn) next() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.own) == 0 {
		g.own = nil // a queue that was long is not kept
		return nil
	}
	frame := g.own[0]
	g.own = g.own[1:]
	return frame
}

// ServeGuest moves frames between the guest and the relays until the session
// fails, ctx ends or the guest breaks the rules (ErrViolation, with the
// reason), and closes it. A second call supersedes the
// first; calls for an older and a newer session must not race.
func (r *Router) ServeGuest(ctx context.Context, session stdio.Session) error {
	g := &guestConn{
		session: session,
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
	}
	defer close(g.done)
	if err := r.install(g); err != nil {
		session.Close()
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() {
		session.Close()
		close(closed)
	})
	ownDone := make(chan struct{})
	go func() {
		defer close(ownDone)
		g.sendOwn(ctx)
	}()
	err := r.receive(ctx, g)
	r.mu.Lock()
	if r.guest == g {
		r.guest = nil
	}
	r.mu.Unlock()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	cancel()
	<-closed
	<-ownDone
	return err
}

// install makes g the guest and has both ends of every channel restate themselves.
func (r *Router) install(g *guestConn) error {
	for {
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			return ErrClosed
		}
		before := r.guest
		if before == nil {
			break
		}
		r.mu.Unlock()
		before.session.Close()
		<-before.done
	}
	defer r.mu.Unlock()
	r.guest = g
	for id, ch := range r.channels {
		switch {
		case ch.relay != nil:
			sync := stdio.AppendSimple(nil, stdio.TypeSync, 0, id, 0)
			g.control(sync)
			ch.relay.enqueue(sync)
		case ch.finished:
			g.control(stdio.AppendSimple(nil, stdio.TypeExitAck, 0, id, 0))
		case ch.detached:
			r.abandon(g, ch)
		}
	}
	return nil
}

func (r *Router) receive(ctx context.Context, g *guestConn) error {
	for {
		b, err := g.session.Recv()
		if err != nil {
			return fmt.Errorf("receiving from the guest: %w", err)
		}
		f, err := stdio.Parse(b)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrViolation, err)
		}
		wait, err := g.pace.frame(time.Now(), f.Type != stdio.TypeData)
		if err != nil {
			return err
		}
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if f.Type == stdio.TypeExit && r.firstExit(f.Channel) && r.cfg.OnExit != nil {
			r.cfg.OnExit(f.Channel, f.Code(), f.Flags&stdio.FlagOOM != 0)
		}
		if err := r.fromGuest(g, f, b); err != nil {
			r.cfg.Log.Warn("guest_broke_stdio_rules", "channel", f.Channel, "frame_type", f.Type, "error", err)
			return err
		}
	}
}

// firstExit notes that a channel's process has exited, and tells whether that is
// news.
func (r *Router) firstExit(id uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := r.channels[id]
	if ch == nil || ch.exited {
		return false
	}
	ch.exited = true
	return true
}

// fromGuest checks one frame and passes it to its relay.
func (r *Router) fromGuest(g *guestConn, f stdio.Frame, frame []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := r.channels[f.Channel]
	if ch == nil {
		return g.straying(f.Channel)
	}
	switch f.Type {
	case stdio.TypeData, stdio.TypeEOF:
		if f.Stream == stdio.Stdin {
			return fmt.Errorf("%w: it sent standard input", ErrViolation)
		}
		w := ch.granted[f.Stream]
		if ch.relay == nil || !w.known {
			return g.straying(f.Channel) // RESUME has it sent again
		}
		if f.Off+uint64(f.Len) > w.limit {
			return fmt.Errorf("%w: channel %d, stream %d: data up to %d, window up to %d",
				ErrViolation, f.Channel, f.Stream, f.Off+uint64(f.Len), w.limit)
		}
		if err := g.pace.repeated(time.Now(), ch.advance(f)); err != nil {
			return err
		}
	case stdio.TypeAck, stdio.TypeResume:
		if f.Stream != stdio.Stdin {
			return fmt.Errorf("%w: it acknowledged its own output", ErrViolation)
		}
	case stdio.TypeExit:
		if ch.finished || ch.detached {
			g.control(stdio.AppendSimple(nil, stdio.TypeExitAck, 0, f.Channel, 0))
			return nil
		}
	case stdio.TypeSync, stdio.TypeSignalAck:
	default:
		return fmt.Errorf("%w: frame type %d", ErrViolation, f.Type)
	}
	if ch.relay != nil {
		ch.relay.enqueue(frame)
	}
	return nil
}

// straying counts frames that have nowhere to go.
func (g *guestConn) straying(channel uint32) error {
	if g.stray++; g.stray > strayMax {
		return fmt.Errorf("%w: more than %d frames for channels without a relay, the last for %d", ErrViolation, strayMax, channel)
	}
	return nil
}
