// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Listener is the guest's side of the stream: it answers each HELLO of the host
// with a new session. At most one session is alive.
//
// While a session's owner does not call Recv the stream stands still, so a new
// HELLO is not seen either: call Recv until it fails.
type Listener struct {
	port     io.ReadWriteCloser
	sessions chan *Session // capacity 1: the newest
	writing  chan struct{} // capacity 1: held while a frame is on its way
	done     chan struct{} // closed when the reading goroutine has ended

	mu  sync.Mutex // guards err and current
	err error
	cur *Session
}

// Listen serves port. A Read of the port must wait while the host is absent
// and fail only when the port itself is of no more use (see OpenPort). If the
// port has SetWriteDeadline, deadlines of sessions bound their writes.
func Listen(port io.ReadWriteCloser) *Listener {
	l := &Listener{
		port:     port,
		sessions: make(chan *Session, 1),
		writing:  make(chan struct{}, 1),
		done:     make(chan struct{}),
	}
	go l.run()
	return l
}

// Accept waits for the host to open a session.
func (l *Listener) Accept(ctx context.Context) (*Session, error) {
	for {
		select {
		case s := <-l.sessions:
			if s.Err() != nil {
				continue // replaced before anybody took it
			}
			return s, nil
		case <-l.done:
			return nil, l.fault()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Close ends the current session, closes the port and waits for the reader.
func (l *Listener) Close() error {
	l.fail(ErrClosed)
	err := l.port.Close()
	<-l.done
	return err
}

func (l *Listener) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	cur := l.cur
	l.mu.Unlock()
	if cur != nil {
		cur.finish(err)
	}
}

func (l *Listener) fault() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *Listener) run() {
	defer close(l.done)
	p := newParser()
	for {
		ev, ok := p.next(l.nonce())
		if ok {
			if !l.handle(p, ev) {
				return
			}
			continue
		}
		n, err := l.port.Read(p.room())
		p.filled(n)
		if n > 0 {
			continue
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		l.fail(fmt.Errorf("reading the port: %w", err))
		return
	}
}

func (l *Listener) nonce() (nonce uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur == nil {
		return 0, false
	}
	return l.cur.nonce, true
}

// handle acts on one frame; false ends the reader.
func (l *Listener) handle(p *parser, ev event) bool {
	l.mu.Lock()
	cur, err := l.cur, l.err
	l.mu.Unlock()
	if err != nil {
		return false
	}
	switch ev.kind {
	case typeHello:
		return l.hello(cur, ev.nonce)
	case typeClose:
		cur.finish(io.EOF)
	case typeMessage:
		g := cur.end.(*guestEnd)
		select {
		case g.in <- ev.payload:
			select {
			case <-g.taken:
			case <-cur.done:
				// The owner may still be looking at the payload.
				p.leaveBuffer()
			}
		case <-cur.done:
		}
	}
	return true
}

func (l *Listener) hello(cur *Session, nonce uint64) bool {
	var next *Session
	if cur == nil || cur.nonce != nonce || cur.Err() != nil {
		if cur != nil {
			cur.finish(ErrReset)
		}
		next = newSession(nonce, &guestEnd{l: l, in: make(chan []byte), taken: make(chan struct{})})
		l.mu.Lock()
		l.cur = next
		err := l.err
		l.mu.Unlock()
		if err != nil {
			next.finish(err)
			return false
		}
	}
	var ack [headerSize + trailerSize]byte
	putFrame(ack[:], typeAck, nonce, nil)
	l.writing <- struct{}{}
	_ = setWriteDeadline(l.port, time.Time{})
	_, err := l.port.Write(ack[:])
	<-l.writing
	if err != nil {
		l.fail(fmt.Errorf("answering the host: %w", err))
		return false
	}
	if next != nil {
		select {
		case <-l.sessions: // nobody took the one before
		default:
		}
		l.sessions <- next
	}
	return true
}

func setWriteDeadline(port any, t time.Time) error {
	if d, ok := port.(interface{ SetWriteDeadline(time.Time) error }); ok {
		return d.SetWriteDeadline(t)
	}
	return os.ErrNoDeadline
}

// guestEnd is the guest's half: payloads come from the listener's reader, one
// at a time and without a copy.
type guestEnd struct {
	l       *Listener
	in      chan []byte
	taken   chan struct{}
	owes    bool        // the payload returned last has not been given back
	holding atomic.Bool // a frame of this session is being written to the port

	readDeadline  deadline
	writeDeadline deadline
}

func (g *guestEnd) recv(s *Session) ([]byte, error) {
	if g.owes {
		g.owes = false
		select {
		case g.taken <- struct{}{}:
		case <-s.done:
		}
	}
	expired := g.readDeadline.wait()
	select {
	case <-expired:
		return nil, os.ErrDeadlineExceeded
	default:
	}
	select {
	case b := <-g.in:
		g.owes = true
		return b, nil
	case <-s.done:
		return nil, s.Err()
	case <-expired:
		return nil, os.ErrDeadlineExceeded
	}
}

func (g *guestEnd) send(s *Session, frame []byte) error {
	expired := g.writeDeadline.wait()
	select {
	case g.l.writing <- struct{}{}:
	case <-s.done:
		return s.Err()
	case <-expired:
		return os.ErrDeadlineExceeded
	}
	defer func() { <-g.l.writing }()
	if err := s.Err(); err != nil {
		return err
	}
	g.holding.Store(true)
	_ = setWriteDeadline(g.l.port, g.writeDeadline.at())
	n, err := g.l.port.Write(frame)
	g.holding.Store(false)
	if err != nil && n > 0 {
		s.finish(ErrTorn)
	}
	return err
}

func (g *guestEnd) setReadDeadline(t time.Time) error {
	g.readDeadline.set(t)
	return nil
}

func (g *guestEnd) setWriteDeadline(t time.Time) error {
	g.writeDeadline.set(t)
	if g.holding.Load() {
		_ = setWriteDeadline(g.l.port, t)
	}
	return nil
}

func (g *guestEnd) release(*Session) error { return nil }
