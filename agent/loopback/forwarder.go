// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"bulkhead/bus/link"
	flows "bulkhead/bus/loopback"
	netv1 "bulkhead/proto/net/v1"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// maxListeners bounds what one guest listens for.
	maxListeners = 256
	// maxFlows is more than the host carries, so that it is the host that chooses
	// which UDP flow gives way.
	maxFlows = 512
	// idle is how long a UDP flow is kept that nobody uses: the host ends it before.
	idle = 2 * time.Minute
)

// Forwarder listens for what the host's namespace offers. Its methods may be called
// concurrently.
type Forwarder struct {
	log hclog.Logger
	// OpenPort opens the guest's end of the port to the host, once there is need.
	openPort func(context.Context) (*link.Listener, error)

	mu       sync.Mutex // guards all below
	redirect *redirect  // nil before the first listener
	serving  bool
	wanted   []*netv1.Listener
	heard    map[flows.Target]*listener

	waiting atomic.Int32  // connections that wait for a session
	muxMu   sync.Mutex    // guards all below
	mux     *flows.Mux    // of the host's present session; nil between two
	changed chan struct{} // closed when there is one again
}

// New returns a forwarder of nothing; openPort is called when there is something.
func New(log hclog.Logger, openPort func(context.Context) (*link.Listener, error)) *Forwarder {
	return &Forwarder{log: log, openPort: openPort, heard: map[flows.Target]*listener{}, changed: make(chan struct{})}
}

// listener is one address that is listened for.
type listener struct {
	port  uint16 // where
	netns uint64
	close func() error
}

// Set makes what is forwarded these listeners. inside runs a function on a thread in
// the network namespace of the containers, where it is listened. What cannot be had is
// told in sentences, and the rest is done. When it returns, programs reach them.
func (f *Forwarder) Set(inside func(func() error) error, wanted []*netv1.Listener) (problems []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = wanted
	return f.apply(inside, wanted)
}

// Moved is for when the containers' network namespace is another one.
func (f *Forwarder) Moved(inside func(func() error) error) (problems []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.apply(inside, f.wanted)
}

// apply is called with mu held.
func (f *Forwarder) apply(inside func(func() error) error, wanted []*netv1.Listener) (problems []string) {
	if len(wanted) == 0 && len(f.heard) == 0 {
		return nil
	}
	refuse := func(what string, err error) {
		problems = append(problems, fmt.Sprintf("what listens at %s on the host is not reached from the guest: %v", what, err))
	}
	netns, err := cookie(inside)
	if err == nil && f.redirect == nil {
		f.redirect, err = attachRedirect(cgroupRoot)
	}
	if err != nil {
		refuse("loopback addresses", err)
		return problems
	}
	want := map[flows.Target]bool{}
	for _, l := range wanted {
		t, err := targetOf(l)
		if err == nil && len(want) == maxListeners {
			err = fmt.Errorf("there are more than %d of them", maxListeners)
		}
		if err != nil {
			refuse(fmt.Sprintf("%s port %d (%s)", l.GetAddress(), l.GetPort(), l.GetProtocol()), err)
			continue
		}
		want[t] = true
	}
	for t, l := range f.heard {
		if !want[t] || l.netns != netns {
			f.redirect.unset(l.netns, t, l.port)
			l.close() //nolint:errcheck // a listener that is gone is gone
			delete(f.heard, t)
		}
	}
	for t := range want {
		if f.heard[t] != nil {
			continue
		}
		l, err := f.listen(inside, t)
		if err == nil {
			l.netns = netns
			if err = f.redirect.set(netns, t, l.port); err != nil {
				l.close() //nolint:errcheck // a listener that is gone is gone
			}
		}
		if err != nil {
			refuse(t.String(), err)
			continue
		}
		f.heard[t] = l
	}
	if !f.serving && len(f.heard) > 0 {
		f.serving = true
		go f.serve()
	}
	return problems
}

func targetOf(l *netv1.Listener) (flows.Target, error) {
	addr, err := netip.ParseAddr(l.GetAddress())
	if err != nil {
		return flows.Target{}, err
	}
	addr = addr.Unmap()
	if !addr.IsLoopback() || l.GetPort() == 0 || l.GetPort() > 65535 {
		return flows.Target{}, errors.New("it is no loopback address with a port")
	}
	t := flows.Target{Address: netip.AddrPortFrom(addr, uint16(l.GetPort()))}
	switch l.GetProtocol() {
	case "tcp":
		t.Protocol = flows.TCP
	case "udp":
		t.Protocol = flows.UDP
	default:
		return flows.Target{}, fmt.Errorf("the protocol %q is not carried", l.GetProtocol())
	}
	return t, nil
}

// cookie names the network namespace as the kernel's programs know it.
func cookie(inside func(func() error) error) (c uint64, err error) {
	err = inside(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		c, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return c, err
}

// listen listens at the target's address, on a port of the kernel's choice.
func (f *Forwarder) listen(inside func(func() error) error, t flows.Target) (l *listener, err error) {
	at := netip.AddrPortFrom(t.Address.Addr(), 0).String()
	err = inside(func() error {
		if t.Protocol == flows.UDP {
			c, err := anywhere.ListenPacket(context.Background(), "udp", at)
			if err != nil {
				return err
			}
			conn := c.(*net.UDPConn)
			p := &packets{f: f, target: t, conn: conn, peers: map[netip.AddrPort]*peer{}}
			l = &listener{port: conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(), close: conn.Close}
			go p.serve()
			return nil
		}
		c, err := anywhere.Listen(context.Background(), "tcp", at)
		if err != nil {
			return err
		}
		l = &listener{port: c.Addr().(*net.TCPAddr).AddrPort().Port(), close: c.Close}
		go f.accept(c.(*net.TCPListener), t)
		return nil
	})
	return l, err
}

// anywhere listens also while the loopback device of a new namespace is not up yet.
var anywhere = net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
	var err error
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if strings.HasSuffix(network, "6") {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }), err)
}}

// accept passes connections to the host until the listener is closed.
func (f *Forwarder) accept(l *net.TCPListener, t flows.Target) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // out of descriptors: those that end make room
			continue
		}
		f.open(t, c)
	}
}

// hostTime is how long a connection waits for the host's session: it may be about to
// begin, or a worker may just be restarting.
const hostTime = 5 * time.Second

// open opens a flow in the host's present session, or in its next one, and closes c in
// the end.
func (f *Forwarder) open(t flows.Target, c flows.Conn) {
	err := f.tryOpen(t, c)
	if err == nil {
		return
	}
	if !errors.Is(err, flows.ErrEnded) || f.waiting.Load() >= maxFlows {
		abort(c)
		return
	}
	f.waiting.Add(1)
	go func() {
		defer f.waiting.Add(-1)
		for end := time.After(hostTime); ; {
			f.muxMu.Lock()
			changed := f.changed
			f.muxMu.Unlock()
			err := f.tryOpen(t, c)
			if err == nil {
				return
			}
			if !errors.Is(err, flows.ErrEnded) {
				abort(c)
				return
			}
			select {
			case <-changed:
			case <-end:
				abort(c)
				return
			}
		}
	}()
}

func (f *Forwarder) tryOpen(t flows.Target, c flows.Conn) error {
	f.muxMu.Lock()
	m := f.mux
	f.muxMu.Unlock()
	if m == nil {
		return flows.ErrEnded
	}
	return m.Open(t, c)
}

// abort lets the program know that its connection leads nowhere.
func abort(c flows.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// serve takes the host's sessions, one after the other, for as long as the guest lives.
func (f *Forwarder) serve() {
	ctx := context.Background()
	port, err := f.openPort(ctx)
	if err != nil {
		f.log.Error("loopback services of the host are not reached", "error", err)
		return
	}
	defer port.Close()
	for {
		session, err := port.Accept(ctx)
		if err != nil {
			f.log.Error("loopback services of the host are not reached any more", "error", err)
			return
		}
		m := flows.New(session, flows.Config{MaxFlows: maxFlows, Idle: idle})
		f.setMux(m)
		err = m.Serve(ctx)
		f.setMux(nil)
		if err != nil && !errors.Is(err, link.ErrReset) {
			f.log.Info("session for loopback services ended, waiting for the host's next", "error", err)
		}
	}
}

func (f *Forwarder) setMux(m *flows.Mux) {
	f.muxMu.Lock()
	defer f.muxMu.Unlock()
	f.mux = m
	if m != nil {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}
