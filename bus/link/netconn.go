// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"bulkhead/bus/idle"
)

// NetConn returns the session as a connection that carries a byte stream; each
// Write becomes one message or more. Deadlines work. Do not use Recv beside it.
func (s *Session) NetConn() net.Conn { return &netConn{s: s} }

type netConn struct {
	s      *Session
	readMu sync.Mutex // guards rest, and Recv
	rest   []byte     // what did not fit the reader's buffer, in spare
	spare  []byte
}

func (c *netConn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	if len(c.rest) > 0 {
		n := copy(b, c.rest)
		c.rest = c.rest[n:]
		return n, nil
	}
	for {
		m, err := c.s.Recv()
		if err != nil {
			return 0, err
		}
		if len(m) == 0 {
			continue
		}
		n := copy(b, m)
		c.spare = append(c.spare[:0], m[n:]...)
		c.rest = c.spare
		return n, nil
	}
}

// WriteTo is for io.Copy, which needs no buffer then.
func (c *netConn) WriteTo(w io.Writer) (int64, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	written := int64(0)
	m := c.rest
	c.rest = nil
	for {
		if len(m) > 0 {
			n, err := w.Write(m)
			if written += int64(n); err != nil {
				return written, err
			}
		}
		var err error
		if m, err = c.s.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return written, err
		}
	}
}

// ReadFrom is likewise: while a connection is silent it holds no buffer.
func (c *netConn) ReadFrom(r io.Reader) (int64, error) {
	from, ok := r.(net.Conn)
	if !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	var buf *[MaxFrame]byte
	give := func() {
		frames.Put(buf)
		buf = nil
	}
	take := func() []byte {
		if buf == nil {
			buf = frames.Get().(*[MaxFrame]byte)
		}
		return buf[:MaxMessage]
	}
	sent := int64(0)
	for {
		n, err := idle.Read(from, take, give)
		if n > 0 {
			m, sendErr := c.Write(buf[:n])
			if sent += int64(m); sendErr != nil {
				return sent, sendErr
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return sent, err
		}
	}
}

func (c *netConn) Write(b []byte) (int, error) {
	sent := 0
	for sent < len(b) {
		part := b[sent:min(len(b), sent+MaxMessage)]
		if err := c.s.Send(part); err != nil {
			return sent, err
		}
		sent += len(part)
	}
	return sent, nil
}

func (c *netConn) Close() error                       { return c.s.Close() }
func (c *netConn) LocalAddr() net.Addr                { return addr{} }
func (c *netConn) RemoteAddr() net.Addr               { return addr{} }
func (c *netConn) SetReadDeadline(t time.Time) error  { return c.s.end.setReadDeadline(t) }
func (c *netConn) SetWriteDeadline(t time.Time) error { return c.s.end.setWriteDeadline(t) }

func (c *netConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

type addr struct{}

func (addr) Network() string { return "link" }
func (addr) String() string  { return "guest-link" }

// deadline is a point in time that can be moved while somebody waits for it.
type deadline struct {
	mu      sync.Mutex // guards all
	time    time.Time
	timer   *time.Timer
	expired chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.expired // the timer fired: let it finish before its channel is replaced
	}
	d.timer, d.time = nil, t
	if d.expired == nil || closed(d.expired) {
		d.expired = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	expired := d.expired
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(expired) })
		return
	}
	close(expired)
}

// wait returns a channel that is closed when the deadline has passed.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.expired == nil {
		d.expired = make(chan struct{})
	}
	return d.expired
}

func (d *deadline) at() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.time
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
