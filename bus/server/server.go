// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package server is the bus itself: nats-server with JetStream inside the
// daemon, the unix sockets through which local programs and guests come in, who
// they are, the gate that guests pass, and the operator's loopback listener.
//
// It imports bus and nats-server, and nothing else of ours; only the daemon and
// tests import it. The invariant: a connection's identity comes from the channel
// it arrived on and is bound before the client has spoken; nothing it says can
// change it.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats-server/v2/server"

	"bulkhead/bus"
)

// FilesOfVM is how many files the server holds open of each VM: its guest's connection.
const FilesOfVM = 1

// GuestSocketName is the guests' unix socket below the run directory.
const GuestSocketName = "guest.sock"

const (
	maxPayload     = 1 << 20
	maxControlLine = 1024
	maxPending     = 8 << 20 // per client; the server's default of 64 MB would be multiplied by guests
	writeDeadline  = 5 * time.Second
	authTimeout    = 10 // seconds; guests under emulation are slow to say CONNECT
	pingInterval   = 20 * time.Second
	maxStore       = 256 << 20
	maxMemory      = 32 << 20
	readyTimeout   = 10 * time.Second
	eventTimeout   = 5 * time.Second
	acceptRest     = 100 * time.Millisecond
	lastWords      = 300 * time.Millisecond
)

// Options say what to serve.
type Options struct {
	Host         string // host id: the first token of this host's subjects
	RunDir       string // sockets and store; made 0700 when missing
	Operator     bool   // open the loopback listener for the nats CLI
	OperatorAddr string // its address, a loopback one; "" means 127.0.0.1:4222, port 0 a free one
	Log          hclog.Logger
	// OnGuestCut is told of each guest that was cut and why. It may be nil and must
	// not block.
	OnGuestCut func(sandbox, reason string)
}

// Server is a running bus.
type Server struct {
	opts Options
	log  hclog.Logger
	srv  *server.Server
	ids  *identities
	self *bus.Conn

	guests      guests
	contextPath string
	lock        *os.File
	listeners   []net.Listener
	undo        []func() // run backwards by Close
	running     sync.WaitGroup
	closing     atomic.Bool
	closed      chan struct{} // closed as Close begins
	closeOnce   sync.Once
	closeErr    error

	mu     sync.Mutex // guards conns and inside
	conns  map[net.Conn]struct{}
	inside []*bus.Conn
}

// Start brings the bus up: the store, the buckets and the event stream, the
// sockets. A second server on the same run directory is refused.
func Start(ctx context.Context, opts Options) (_ *Server, err error) {
	if opts.Log == nil {
		opts.Log = hclog.NewNullLogger()
	}
	if opts.Host == "" || bus.Token(opts.Host) != opts.Host {
		return nil, fmt.Errorf("host id %q must be one subject token of A-Z a-z 0-9 _ -", opts.Host)
	}
	if opts.OperatorAddr == "" {
		opts.OperatorAddr = "127.0.0.1:4222"
	}
	s := &Server{
		opts: opts, log: opts.Log,
		ids:    &identities{byID: map[uint64]identity{}},
		guests: guests{live: map[string]*guestSession{}},
		conns:  map[net.Conn]struct{}{},
		closed: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if s.lock, err = lockRunDir(opts.RunDir); err != nil {
		return nil, err
	}
	if err := s.startNATS(); err != nil {
		return nil, err
	}
	if s.self, err = s.ConnInProcess("bus"); err != nil {
		return nil, err
	}
	if err := bus.CreateState(ctx, s.self); err != nil {
		return nil, err
	}
	if err := s.listen(GuestSocketName, s.serveGuest); err != nil {
		return nil, err
	}
	if opts.Operator {
		if err := s.publishOperator(); err != nil {
			return nil, err
		}
	}
	// Last: whoever finds this socket finds a bus that is ready.
	if err := s.listen(bus.SocketName, s.serveLocal); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) startNATS() error {
	opts, err := s.natsOptions()
	if err != nil {
		return err
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("make the bus server: %w", err)
	}
	srv.SetLoggerV2(logAdapter{s.log.Named("nats")}, s.log.IsTrace(), false, false)
	s.srv = srv
	s.ids.srv = srv
	srv.Start()
	if !srv.ReadyForConnections(readyTimeout) {
		if s.opts.Operator {
			return fmt.Errorf("the bus server did not become ready; is %s in use?", s.opts.OperatorAddr)
		}
		return fmt.Errorf("the bus server did not become ready within %v", readyTimeout)
	}
	return nil
}

func (s *Server) natsOptions() (*server.Options, error) {
	opts := &server.Options{}
	if err := opts.ProcessConfigString(accountsConfig); err != nil {
		return nil, fmt.Errorf("configure the bus accounts: %w", err)
	}
	opts.ServerName = s.opts.Host
	opts.NoSigs = true // signals are the daemon's
	opts.NoLog = true  // SetLoggerV2 gives the log
	opts.JetStream = true
	opts.StoreDir = filepath.Join(s.opts.RunDir, "jetstream")
	opts.JetStreamMaxStore = maxStore
	opts.JetStreamMaxMemory = maxMemory
	opts.SyncAlways = true // a record that was acknowledged is on the disk; the event stream opts out
	opts.MaxPayload = maxPayload
	opts.MaxControlLine = maxControlLine
	opts.MaxPending = maxPending
	opts.WriteDeadline = writeDeadline
	opts.NoFastProducerStall = true // a guest that does not read must not slow its publisher
	opts.AuthTimeout = authTimeout
	opts.PingInterval = pingInterval
	opts.CustomClientAuthentication = s.ids
	opts.DontListen = !s.opts.Operator
	if s.opts.Operator {
		host, port, err := loopback(s.opts.OperatorAddr)
		if err != nil {
			return nil, err
		}
		opts.Host, opts.Port = host, port
		s.ids.token = newPassword()
	}
	if err := os.MkdirAll(opts.StoreDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store: %w", err)
	}
	return opts, nil
}

// loopback splits the operator's address, which must not be reachable from
// other machines: its password travels in the clear.
func loopback(addr string) (string, int, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("operator address %q: %w", addr, err)
	}
	ip := net.ParseIP(host)
	if ip == nil || !ip.IsLoopback() {
		return "", 0, fmt.Errorf("operator address %q must be on the loopback device, such as 127.0.0.1", addr)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("operator address %q has no valid port", addr)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

// ConnInProcess makes a connection for a service in this process, with all
// rights of the host. Close ends what its owner has not.
func (s *Server) ConnInProcess(name string) (*bus.Conn, error) {
	dial := func() (net.Conn, error) {
		conn, info, err := s.ids.open(identity{name: "daemon " + name, account: accountHost})
		if err != nil {
			return nil, err
		}
		return &replay{Conn: conn, first: info}, nil
	}
	c, err := bus.Connect(name, dial, bus.Persistent(), bus.WithLog(s.log))
	if err != nil {
		return nil, fmt.Errorf("connect %s inside the daemon: %w", name, err)
	}
	s.mu.Lock()
	s.inside = append(s.inside, c)
	s.mu.Unlock()
	return c, nil
}

// URL is where the operator's listener is, "" without one.
func (s *Server) URL() string {
	if !s.opts.Operator || s.srv.Addr() == nil {
		return ""
	}
	return "nats://" + s.srv.Addr().String()
}

// ContextPath is the nats CLI context that was written, "" if none.
func (s *Server) ContextPath() string { return s.contextPath }

// track remembers a connection so that Close can end it; false once closing.
func (s *Server) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

func (s *Server) untrack(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// rest waits a little; false when the server closes meanwhile.
func (s *Server) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.closed:
		return false
	}
}

// Close ends the bus. The services on it must have been stopped by then, with
// Service.Stop; what they answered is flushed.
func (s *Server) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Server) close() error {
	s.mu.Lock()
	s.closing.Store(true)
	inside := s.inside
	s.mu.Unlock()
	close(s.closed)
	var problems []error
	for _, l := range s.listeners {
		problems = append(problems, l.Close()) // removes the socket too
	}
	for _, c := range inside {
		if c.NATS().IsConnected() {
			_ = c.NATS().FlushTimeout(eventTimeout) // what cannot be flushed has no reader
		}
		c.Close()
	}
	if s.srv != nil {
		s.srv.Shutdown()
		s.srv.WaitForShutdown()
	}
	// The bridges pass on the server's last words and leave the clients a moment
	// to take them.
	s.mu.Lock()
	for conn := range s.conns {
		_ = conn.SetDeadline(time.Now().Add(lastWords))
	}
	s.mu.Unlock()
	s.running.Wait()
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
	if s.lock != nil {
		problems = append(problems, s.lock.Close())
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("close the bus: %w", err)
	}
	return nil
}
