// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// Session is what a Mux speaks over: a session of bus/link.
type Session interface {
	Send([]byte) error
	Recv() ([]byte, error)
	Close() error
}

// Conn is the local end of a flow: a connection, or one peer of a UDP socket. Read
// ends with an error when it is closed. A stream's CloseWrite tells its peer that
// nothing more comes.
type Conn interface {
	io.ReadWriteCloser
}

// closeWriter is a Conn of a stream.
type closeWriter interface{ CloseWrite() error }

// Config is how a Mux behaves.
type Config struct {
	// Dial connects a flow that the other side opened. Without it, which is how
	// the guest is, the other side opens none.
	Dial func(context.Context, Target) (Conn, error)
	// Dials is how many may be under way at once; DialTime bounds each.
	Dials    int
	DialTime time.Duration
	// MaxFlows is how many flows there may be. With that many, the UDP flow that
	// was used longest ago gives way.
	MaxFlows int
	// Idle ends a UDP flow on which nothing passes.
	Idle time.Duration
	// Pace, if set, is asked before each frame, and tells how long to wait.
	Pace func(now time.Time, opens bool) time.Duration
}

// Mux carries flows over one session.
type Mux struct {
	cfg     Config
	session Session
	words   chan []byte // what the reader has to say itself
	dials   chan struct{}
	over    chan struct{} // closed when Serve ends
	flows   sync.WaitGroup

	mu    sync.Mutex // guards all below
	byID  map[uint32]*flow
	next  uint32
	ended bool
}

// maxWords bounds what the reader has said and the other side has not taken.
const maxWords = 256

// New makes a Mux; Serve runs it.
func New(session Session, cfg Config) *Mux {
	return &Mux{
		cfg: cfg, session: session,
		words: make(chan []byte, maxWords),
		dials: make(chan struct{}, max(1, cfg.Dials)),
		over:  make(chan struct{}),
		byID:  map[uint32]*flow{},
	}
}

// Serve moves frames until the session fails, ctx ends or the other side breaks the
// rules (ErrViolation). Then it closes the session and every flow, and waits for them.
func (m *Mux) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { m.session.Close() })
	m.flows.Go(func() { m.speak(ctx) })
	go func() { // idle flows end by a clock of their own, also when no frame comes
		tick := time.NewTicker(max(m.cfg.Idle/4, 10*time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m.expire()
			case <-m.over:
				return
			}
		}
	}()
	err := m.receive(ctx)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	m.mu.Lock()
	m.ended = true
	all := make([]*flow, 0, len(m.byID))
	for _, f := range m.byID {
		all = append(all, f)
	}
	m.mu.Unlock()
	cancel()
	stop()
	m.session.Close()
	for _, f := range all {
		f.end(false)
	}
	close(m.over)
	m.flows.Wait()
	return err
}

// speak sends what the reader has to say.
func (m *Mux) speak(ctx context.Context) {
	for {
		select {
		case w := <-m.words:
			if m.session.Send(w) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// say queues a word of the reader's. It never waits: a side that takes nothing
// loses its session.
func (m *Mux) say(word []byte) {
	select {
	case m.words <- word:
	default:
		go m.session.Close()
	}
}

func (m *Mux) receive(ctx context.Context) error {
	for {
		b, err := m.session.Recv()
		if err != nil {
			return err
		}
		f, err := parse(b)
		if err != nil {
			return err
		}
		if m.cfg.Pace != nil {
			if wait := m.cfg.Pace(time.Now(), f.kind == typeOpen); wait > 0 {
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		if err := m.take(ctx, f); err != nil {
			return err
		}
	}
}

func (m *Mux) take(ctx context.Context, f frame) error {
	m.mu.Lock()
	fl := m.byID[f.flow]
	m.mu.Unlock()
	if f.kind == typeOpen {
		if m.cfg.Dial == nil || fl != nil {
			return fmt.Errorf("%w: it opens flow %d", ErrViolation, f.flow)
		}
		m.accept(ctx, f)
		return nil
	}
	if fl == nil {
		return nil // it has ended, and this was on its way
	}
	switch f.kind {
	case typeData:
		return fl.data(f.payload)
	case typeEOF:
		return fl.eof()
	case typeCredit:
		return fl.grant(f.credit)
	case typeReset:
		fl.end(false)
	}
	return nil
}

// accept dials for a flow that the other side opened.
func (m *Mux) accept(ctx context.Context, f frame) {
	fl, err := m.add(f.flow, true, f.target)
	if err != nil {
		m.say(simple(typeReset, f.flow))
		return
	}
	go func() {
		defer m.flows.Done()
		conn, err := m.dial(ctx, fl)
		if err != nil {
			fl.end(true)
			return
		}
		fl.run(conn)
	}()
}

func (m *Mux) dial(ctx context.Context, fl *flow) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.DialTime)
	defer cancel()
	go func() {
		select {
		case <-fl.done: // nobody waits for it any more
			cancel()
		case <-ctx.Done():
		}
	}()
	select {
	case m.dials <- struct{}{}:
		defer func() { <-m.dials }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return m.cfg.Dial(ctx, fl.target)
}

// Open carries conn to a target on the other side, and closes it in the end. With an
// error it stays the caller's.
func (m *Mux) Open(t Target, conn Conn) error {
	fl, err := m.add(0, false, t)
	if err != nil {
		return err
	}
	go func() {
		defer m.flows.Done()
		if m.session.Send(openFrame(fl.id, t)) != nil {
			conn.Close()
			fl.end(false)
			return
		}
		fl.run(conn)
	}()
	return nil
}

// add makes room for a flow, and the flow: one more for Serve to wait for.
func (m *Mux) add(id uint32, given bool, t Target) (*flow, error) {
	m.mu.Lock()
	var gone *flow
	if len(m.byID) >= m.cfg.MaxFlows {
		if gone = m.oldest(); gone == nil {
			m.mu.Unlock()
			return nil, ErrFull
		}
		delete(m.byID, gone.id)
	}
	if m.ended {
		m.mu.Unlock()
		return nil, ErrEnded
	}
	for !given {
		id = m.next
		m.next++
		if m.byID[id] == nil {
			break
		}
	}
	fl := newFlow(m, id, t)
	m.byID[id] = fl
	m.flows.Add(1)
	m.mu.Unlock()
	if gone != nil {
		gone.close()
		m.say(simple(typeReset, gone.id))
	}
	return fl, nil
}

// oldest is the UDP flow that was used longest ago. The caller holds mu.
func (m *Mux) oldest() (found *flow) {
	for _, f := range m.byID {
		if f.target.Protocol == UDP && (found == nil || f.used.Load() < found.used.Load()) {
			found = f
		}
	}
	return found
}

// expire ends the UDP flows that nobody uses.
func (m *Mux) expire() {
	limit := time.Now().Add(-m.cfg.Idle).UnixNano()
	var idle []*flow
	m.mu.Lock()
	for _, f := range m.byID {
		if f.target.Protocol == UDP && f.used.Load() < limit {
			idle = append(idle, f)
		}
	}
	m.mu.Unlock()
	for _, f := range idle {
		f.end(true)
	}
}

func (m *Mux) remove(f *flow) {
	m.mu.Lock()
	if m.byID[f.id] == f {
		delete(m.byID, f.id)
	}
	m.mu.Unlock()
}

// Flows is how many there are.
func (m *Mux) Flows() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.byID)
}
