// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// flow is one connection, or one UDP peer.
type flow struct {
	m      *Mux
	id     uint32
	target Target
	used   atomic.Int64 // when something passed last, in Unix nanoseconds
	done   chan struct{}
	wake   chan struct{} // capacity 1: something of the below has changed for a writer
	may    chan struct{} // capacity 1: there is credit again

	mu       sync.Mutex // guards all below
	conn     Conn       // nil until it is there
	closed   bool
	queue    [][]byte // of the other side's, to be written to conn
	queued   int      // bytes that were sent and are not written yet
	peerEnds bool     // its stream ends after the queue
	credit   int      // what may be sent of a stream
	halves   int      // directions that have ended
}

func newFlow(m *Mux, id uint32, t Target) *flow {
	f := &flow{m: m, id: id, target: t, credit: Window, done: make(chan struct{}), wake: make(chan struct{}, 1), may: make(chan struct{}, 1)}
	f.touch()
	return f
}

func (f *flow) touch() { f.used.Store(time.Now().UnixNano()) }

func (f *flow) stream() bool { return f.target.Protocol == TCP }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// data takes what the other side has sent.
func (f *flow) data(b []byte) error {
	f.touch()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	if f.stream() {
		if f.peerEnds || f.queued+len(b) > Window {
			return fmt.Errorf("%w: data beyond the end or the window of flow %d", ErrViolation, f.id)
		}
		if n := len(f.queue); n > 0 && len(f.queue[n-1])+len(b) <= chunk {
			f.queue[n-1] = append(f.queue[n-1], b...) // many small frames are no more memory than their bytes
			f.queued += len(b)
			signal(f.wake)
			return nil
		}
	} else if len(f.queue) >= datagrams || f.queued+len(b) > Window {
		return nil // as a socket whose buffer is full
	}
	f.queued += len(b)
	f.queue = append(f.queue, append([]byte(nil), b...))
	signal(f.wake)
	return nil
}

func (f *flow) eof() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stream() || f.peerEnds {
		return fmt.Errorf("%w: flow %d ends twice", ErrViolation, f.id)
	}
	f.peerEnds = true
	signal(f.wake)
	return nil
}

func (f *flow) grant(n int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stream() || f.credit+n > Window {
		return fmt.Errorf("%w: credit beyond the window of flow %d", ErrViolation, f.id)
	}
	f.credit += n
	signal(f.may)
	return nil
}

// run moves both directions until the flow ends.
func (f *flow) run(conn Conn) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		conn.Close()
		return
	}
	f.conn = conn
	f.mu.Unlock()
	f.m.flows.Go(func() { f.over(f.receive(conn)) })
	f.over(f.send(conn))
}

// over ends the flow when both directions have ended, or one of them badly.
func (f *flow) over(err error) {
	f.mu.Lock()
	f.halves++
	both := f.halves == 2
	f.mu.Unlock()
	switch {
	case err != nil:
		f.end(true)
	case both:
		f.end(false)
	}
}

// receive writes what the other side sends to conn.
func (f *flow) receive(conn Conn) error {
	unsaid := 0 // credit that was not given back yet
	for {
		f.mu.Lock()
		queue, ends := f.queue, f.peerEnds
		f.queue = nil
		f.mu.Unlock()
		for _, b := range queue {
			_, err := conn.Write(b)
			if err != nil && f.stream() {
				return err // a datagram that could not be delivered is lost; the next may not be
			}
			f.touch()
			f.mu.Lock()
			f.queued -= len(b)
			f.mu.Unlock()
			if !f.stream() {
				continue
			}
			if unsaid += len(b); unsaid >= Window/4 {
				if err := f.m.session.Send(creditFrame(f.id, unsaid)); err != nil {
					return err
				}
				unsaid = 0
			}
		}
		if len(queue) > 0 {
			continue
		}
		if ends {
			if c, ok := conn.(closeWriter); ok {
				return c.CloseWrite()
			}
			return nil
		}
		select {
		case <-f.wake:
		case <-f.done:
			return nil
		}
	}
}

// send reads from conn and sends it to the other side.
func (f *flow) send(conn Conn) error {
	buf := make([]byte, headerSize+chunk)
	if !f.stream() {
		buf = make([]byte, headerSize+MaxDatagram+1)
	}
	putHeader(buf, typeData, f.id)
	for {
		limit := len(buf) - headerSize
		if f.stream() {
			if limit = min(limit, f.allowed()); limit == 0 {
				return nil // ended
			}
		}
		n, err := conn.Read(buf[headerSize : headerSize+limit])
		if n > 0 || err == nil && !f.stream() {
			f.touch()
			if f.stream() {
				f.mu.Lock()
				f.credit -= n
				f.mu.Unlock()
			}
			if n <= MaxDatagram {
				if err := f.m.session.Send(buf[:headerSize+n]); err != nil {
					return err
				}
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && f.stream():
			return f.m.session.Send(simple(typeEOF, f.id))
		case errors.Is(err, syscall.ECONNREFUSED) && !f.stream():
			// Told of an earlier datagram.
		default:
			return err
		}
	}
}

// allowed waits until something may be sent and returns how much; 0 is the flow's end.
func (f *flow) allowed() int {
	for {
		f.mu.Lock()
		n := f.credit
		f.mu.Unlock()
		if n > 0 {
			return n
		}
		select {
		case <-f.may:
		case <-f.done:
			return 0
		}
	}
}

// end ends the flow at once, and tells the other side if it does not know.
func (f *flow) end(tell bool) {
	f.m.remove(f)
	if f.close() && tell {
		f.m.say(simple(typeReset, f.id))
	}
}

// close tells whether this call ended it.
func (f *flow) close() bool {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return false
	}
	f.closed = true
	conn, broken := f.conn, f.halves < 2
	f.queue = nil
	f.mu.Unlock()
	close(f.done)
	if conn == nil {
		return true
	}
	if c, ok := conn.(interface{ SetLinger(int) error }); ok && broken {
		_ = c.SetLinger(0) // its peer learns that the connection broke
	}
	conn.Close()
	return true
}
