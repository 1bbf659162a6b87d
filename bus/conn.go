// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// SocketName is the bus's unix socket below the run directory.
const SocketName = "bus.sock"

const (
	defaultDialTimeout = 5 * time.Second
	reconnectWait      = 100 * time.Millisecond
	pingInterval       = 10 * time.Second
	maxPingsOut        = 2
)

// Conn is a connection to the bus that knows its host's id.
type Conn struct {
	nc   *nats.Conn
	host string
	log  hclog.Logger

	js  jetstream.JetStream
	own func() // releases what Dial made, may be nil

	mu    sync.Mutex      // guards epoch and lose
	epoch context.Context // done when the connection that was up is lost
	lose  context.CancelCauseFunc
}

type dialConfig struct {
	persistent bool
	timeout    time.Duration
	log        hclog.Logger
}

// DialOption changes how Dial connects.
type DialOption func(*dialConfig)

// Persistent makes the connection come back by itself, for ever: for daemons.
// Without it the loss of the connection is final, as suits a command line.
func Persistent() DialOption { return func(c *dialConfig) { c.persistent = true } }

// DialTimeout bounds the connection attempt; 5 s without it.
func DialTimeout(d time.Duration) DialOption { return func(c *dialConfig) { c.timeout = d } }

// WithLog tells of lost and restored connections and of dropped messages.
func WithLog(log hclog.Logger) DialOption { return func(c *dialConfig) { c.log = log } }

// Dial connects to the bus of the daemon that serves runDir. The name appears
// in what operators see of connections. When no daemon is there the error is
// ErrNoDaemon and its text tells how to start one.
func Dial(ctx context.Context, runDir, name string, options ...DialOption) (*Conn, error) {
	cfg := dialConfig{timeout: defaultDialTimeout}
	for _, o := range options {
		o(&cfg)
	}
	path := filepath.Join(runDir, SocketName)
	dial := func() (net.Conn, error) {
		d := net.Dialer{Timeout: cfg.timeout}
		return d.DialContext(ctx, "unix", path)
	}
	if cfg.persistent {
		// ctx bounds the first connection only; later ones belong to the Conn.
		first := true
		once := dial
		dial = func() (net.Conn, error) {
			if first {
				first = false
				return once()
			}
			return net.DialTimeout("unix", path, cfg.timeout)
		}
	}
	if deadline, ok := ctx.Deadline(); ok {
		cfg.timeout = min(cfg.timeout, time.Until(deadline))
	}
	var failure error // nats.go forgets a refused connection's own error
	c, err := connect(func() (net.Conn, error) {
		conn, err := dial()
		if err != nil {
			failure = err
		}
		return conn, err
	}, name, cfg)
	if err != nil {
		return nil, dialError(errors.Join(err, failure), path)
	}
	return c, nil
}

// Connect is Dial over any way to open a byte stream to the server, called
// again on every reconnect. It exists for the server's in-process connections.
func Connect(name string, dial func() (net.Conn, error), options ...DialOption) (*Conn, error) {
	cfg := dialConfig{timeout: defaultDialTimeout}
	for _, o := range options {
		o(&cfg)
	}
	return connect(dialer(dial), name, cfg)
}

func connect(d dialer, name string, cfg dialConfig) (*Conn, error) {
	if cfg.timeout <= 0 {
		return nil, context.DeadlineExceeded
	}
	log := cfg.log
	if log == nil {
		log = hclog.NewNullLogger()
	}
	options := []nats.Option{
		nats.InProcessServer(d),
		nats.Name(name),
		nats.Timeout(cfg.timeout),
		nats.FlusherTimeout(cfg.timeout), // else a failing connect flushes for a minute more
		nats.ReconnectBufSize(-1),        // a command buffered through an outage would run after its caller gave up
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPingsOut),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			log.Warn("bus error", "connection", name, "subject", subject, "error", err)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			log.Debug("bus connection lost", "connection", name, "error", err)
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("bus connection restored", "connection", name) }),
	}
	if cfg.persistent {
		options = append(options, nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait), nats.ReconnectJitter(reconnectWait, reconnectWait))
	} else {
		options = append(options, nats.NoReconnect())
	}
	nc, err := nats.Connect("", options...)
	if err != nil {
		return nil, err
	}
	c, err := NewConn(nc, nc.ConnectedServerName())
	if err != nil {
		nc.Close()
		return nil, err
	}
	c.log = log
	c.own = nc.Close
	return c, nil
}

// NewConn makes a Conn of an existing connection to the bus of a host. Closing
// the Conn leaves nc open.
func NewConn(nc *nats.Conn, host string) (*Conn, error) {
	if host == "" {
		return nil, Errorf(InvalidArgument, "a bus connection needs the host id")
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("use jetstream: %w", err)
	}
	c := &Conn{nc: nc, host: host, js: js, log: hclog.NewNullLogger()}
	c.epoch, c.lose = context.WithCancelCause(context.Background())
	lost := nc.DisconnectErrHandler()
	nc.SetDisconnectErrHandler(func(nc *nats.Conn, err error) {
		c.renew()
		if lost != nil {
			lost(nc, err)
		}
	})
	closed := nc.ClosedHandler()
	nc.SetClosedHandler(func(nc *nats.Conn) {
		c.renew()
		if closed != nil {
			closed(nc)
		}
	})
	return c, nil
}

// NATS gives the connection beneath.
func (c *Conn) NATS() *nats.Conn { return c.nc }

// JetStream gives the persistence beneath State and Events.
func (c *Conn) JetStream() jetstream.JetStream { return c.js }

// Host is the id of the host, the first token of its services' subjects.
func (c *Conn) Host() string { return c.host }

// Subject is the subject of a method of a service on this host.
func (c *Conn) Subject(service, method string) string { return Subject(c.host, service, method) }

// Close ends the connection; calls that wait fail at once.
func (c *Conn) Close() {
	if c.own != nil {
		c.own()
	}
	c.renew()
}

// renew fails the calls that wait: their replies went to a connection that is
// gone, and nats.go would let them wait for their deadline.
func (c *Conn) renew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lose(ErrConnectionLost)
	c.epoch, c.lose = context.WithCancelCause(context.Background())
}

func (c *Conn) current() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

// dialer lets nats.go use any byte stream: its in-process hook asks for no URL
// and no TLS, and is called again on every reconnect.
type dialer func() (net.Conn, error)

// InProcessConn implements nats.InProcessConnProvider.
func (d dialer) InProcessConn() (net.Conn, error) { return d() }

// noDaemon keeps the system's error text out: engines read "no such file or
// directory" on stderr as "the container's command was not found".
type noDaemon struct{ path string }

func (e *noDaemon) Error() string {
	return fmt.Sprintf("%v: nothing answers at %s; start it with \"systemctl start bulkhead\" (or \"make up\" in a checkout)", ErrNoDaemon, e.path)
}

func (e *noDaemon) Is(target error) bool { return target == ErrNoDaemon }

func dialError(err error, path string) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return &noDaemon{path}
	case errors.Is(err, syscall.EACCES), errors.Is(err, nats.ErrAuthorization):
		return Errorf(FailedPrecondition, "the bus at %s serves root only and this is uid %d; use sudo", path, os.Geteuid())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), errors.Is(err, os.ErrDeadlineExceeded):
		return Errorf(Unavailable, "the daemon behind %s did not answer in time; see \"systemctl status bulkhead\"", path)
	}
	return Errorf(Unavailable, "connect to the bus at %s: %w", path, err)
}
