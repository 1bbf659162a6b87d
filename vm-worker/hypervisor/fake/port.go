// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// port is the guest's side of a virtio-serial port: one connection at a time,
// reads that wait while there is none, and what is written meanwhile lost.
type port struct {
	listener *net.UnixListener

	mu       sync.Mutex
	conn     net.Conn  // guarded by mu: the host, if connected
	deadline time.Time // guarded by mu: of writes
	closed   bool      // guarded by mu
}

func newPort(dir, name string) (*port, error) {
	path := filepath.Join(dir, name+".sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return &port{listener: l}, nil
}

// Read waits for the host and then for its bytes.
func (p *port) Read(b []byte) (int, error) {
	for {
		conn, err := p.host()
		if err != nil {
			return 0, err
		}
		n, err := conn.Read(b)
		if n > 0 {
			return n, nil
		}
		if err != nil {
			p.drop(conn)
		}
	}
}

func (p *port) host() (net.Conn, error) {
	p.mu.Lock()
	conn, closed := p.conn, p.closed
	p.mu.Unlock()
	if closed {
		return nil, os.ErrClosed
	}
	if conn != nil {
		return conn, nil
	}
	conn, err := p.listener.Accept()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return nil, os.ErrClosed
	}
	_ = conn.SetWriteDeadline(p.deadline)
	p.conn = conn
	return conn, nil
}

func (p *port) drop(conn net.Conn) {
	conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == conn {
		p.conn = nil
	}
}

func (p *port) Write(b []byte) (int, error) {
	p.mu.Lock()
	conn, closed := p.conn, p.closed
	p.mu.Unlock()
	if closed {
		return 0, os.ErrClosed
	}
	if conn == nil {
		return len(b), nil
	}
	n, err := conn.Write(b)
	if os.IsTimeout(err) {
		return n, err
	}
	return len(b), nil
}

// SetWriteDeadline bounds Write.
func (p *port) SetWriteDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	if p.conn != nil {
		return p.conn.SetWriteDeadline(t)
	}
	return nil
}

func (p *port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.conn != nil {
		p.conn.Close()
	}
	return p.listener.Close()
}
