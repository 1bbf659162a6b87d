// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// guestConnectTimeout is long, as a guest under software emulation is slow.
var guestConnectTimeout = 10 * time.Second

const (
	guestPingInterval  = 5 * time.Second
	guestReconnectWait = 200 * time.Millisecond
)

// ConnectGuest makes the agent's connection over whatever stream leads to the
// host. dial is called for the first connection and for every later one; ctx
// is the life of the connection, not of the attempt: its end closes it. A peer
// that accepts and says nothing is given up after 10 s, a link that goes silent
// after two missed pings of 5 s.
func ConnectGuest(ctx context.Context, sandbox string, dial func(context.Context) (net.Conn, error)) (*nats.Conn, error) {
	provider := dialer(func() (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return &deadlineConn{Conn: conn}, nil
	})
	nc, err := nats.Connect("",
		nats.InProcessServer(provider),
		nats.Name("guest "+sandbox),
		nats.CustomInboxPrefix(InboxPrefix(sandbox)),
		nats.Timeout(guestConnectTimeout),
		nats.FlusherTimeout(guestConnectTimeout),
		nats.PingInterval(guestPingInterval),
		nats.MaxPingsOutstanding(2),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(guestReconnectWait),
		nats.ReconnectJitter(0, 0),
		nats.ReconnectBufSize(-1),
	)
	if err != nil {
		return nil, fmt.Errorf("connect sandbox %s to the bus: %w", sandbox, err)
	}
	stop := context.AfterFunc(ctx, nc.Close)
	nc.SetClosedHandler(func(*nats.Conn) { stop() })
	return nc, nil
}

// deadlineConn gives deadlines to streams that have none: a deadline that
// passes closes the stream, which is what nats.go does next anyway.
type deadlineConn struct {
	net.Conn

	mu          sync.Mutex // guards the timers
	read, write *time.Timer
}

// SetDeadline implements net.Conn.
func (c *deadlineConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *deadlineConn) SetReadDeadline(t time.Time) error { return c.set(&c.read, t) }

// SetWriteDeadline implements net.Conn.
func (c *deadlineConn) SetWriteDeadline(t time.Time) error { return c.set(&c.write, t) }

// Close implements net.Conn.
func (c *deadlineConn) Close() error {
	_ = c.SetDeadline(time.Time{})
	return c.Conn.Close()
}

func (c *deadlineConn) set(timer **time.Timer, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *timer != nil {
		(*timer).Stop()
		*timer = nil
	}
	if !t.IsZero() {
		*timer = time.AfterFunc(time.Until(t), func() { _ = c.Conn.Close() })
	}
	return nil
}
