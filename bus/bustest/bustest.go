// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package bustest gives a test a real bus in one line.
//
// It imports bus and bus/server, and only tests import it. Everything it starts
// ends with the test.
package bustest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"

	"bulkhead/bus"
	"bulkhead/bus/server"
)

// Host is the host id of a test's bus.
const Host = "testhost"

// Bus is a running bus.
type Bus struct {
	Server *server.Server
	RunDir string

	t  testing.TB
	mu sync.Mutex // guards conn
	c  *bus.Conn
}

// Option changes the bus of a test.
type Option func(*server.Options)

// With edits the server's options, such as Operator.
func With(edit func(*server.Options)) Option { return edit }

// Start runs a bus in a run directory of its own until the test ends. Its log
// goes to the test's, from warnings on.
func Start(t testing.TB, options ...Option) *Bus {
	t.Helper()
	// Not t.TempDir: the test's name may not fit in a unix socket's path.
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	opts := server.Options{Host: Host, RunDir: filepath.Join(dir, "run"), Log: Log(t)}
	for _, o := range options {
		o(&opts)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := server.Start(ctx, opts)
	if err != nil {
		t.Fatalf("start the bus: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the bus: %v", err)
		}
	})
	return &Bus{Server: s, RunDir: opts.RunDir, t: t}
}

// Conn is the test's connection, inside the process.
func (b *Bus) Conn() *bus.Conn {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		c, err := b.Server.ConnInProcess("test")
		if err != nil {
			b.t.Fatalf("connect to the bus: %v", err)
		}
		b.c = c
	}
	return b.c
}

// Dial is a further connection, through the unix socket as other programs come.
func (b *Bus) Dial(name string, options ...bus.DialOption) *bus.Conn {
	b.t.Helper()
	c, err := bus.Dial(context.Background(), b.RunDir, name, options...)
	if err != nil {
		b.t.Fatalf("dial the bus: %v", err)
	}
	b.t.Cleanup(c.Close)
	return c
}

// GuestDial opens the raw stream of a guest, past its preamble.
func (b *Bus) GuestDial(sandbox string) net.Conn {
	b.t.Helper()
	conn, err := b.dialGuest(context.Background(), sandbox)
	if err != nil {
		b.t.Fatalf("dial as guest %s: %v", sandbox, err)
	}
	b.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Guest is the connection of a sandbox's agent.
func (b *Bus) Guest(sandbox string) *nats.Conn {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b.t.Cleanup(cancel)
	nc, err := bus.ConnectGuest(ctx, sandbox, func(ctx context.Context) (net.Conn, error) { return b.dialGuest(ctx, sandbox) })
	if err != nil {
		b.t.Fatalf("connect as guest %s: %v", sandbox, err)
	}
	b.t.Cleanup(nc.Close)
	return nc
}

func (b *Bus) dialGuest(ctx context.Context, sandbox string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(b.RunDir, server.GuestSocketName))
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte("GUEST " + sandbox + "\n")); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// Log is a logger that writes to the test until it ends.
func Log(t testing.TB) hclog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(w.end)
	return hclog.New(&hclog.LoggerOptions{Name: "bus", Level: hclog.Warn, Output: w})
}

// testWriter drops what is logged after the end, which testing answers with a
// panic.
type testWriter struct {
	t  testing.TB
	mu sync.Mutex // guards over
	// over is set when the test may no longer be written to.
	over bool
}

// Write implements io.Writer.
func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func (w *testWriter) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
}
