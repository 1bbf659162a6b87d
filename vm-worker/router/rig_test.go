// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/link"
	"bulkhead/bus/stdio"
	"bulkhead/runtime-frontend/shadow"
	"bulkhead/vm-worker/router"
)

var relayBinary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bulkhead-router-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	relayBinary = filepath.Join(dir, "bulkhead-relay")
	build := exec.Command("go", "build", "-o", relayBinary, "bulkhead/runtime-frontend/cmd/bulkhead-relay")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the relay: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// port behaves as a virtio-serial port under QEMU: it outlives the host's
// connections, waits while there is none, and loses what a dying one held.
type port struct {
	mu     sync.Mutex // guards conn and closed
	change sync.Cond
	conn   net.Conn
	closed bool
}

func newPort() *port {
	p := &port{}
	p.change.L = &p.mu
	return p
}

func (p *port) plug(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
	}
	p.conn = c
	p.change.Broadcast()
}

func (p *port) current() (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.conn == nil && !p.closed {
		p.change.Wait()
	}
	if p.closed {
		return nil, os.ErrClosed
	}
	return p.conn, nil
}

func (p *port) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == c {
		c.Close()
		p.conn = nil
	}
}

func (p *port) Read(b []byte) (int, error) {
	for {
		c, err := p.current()
		if err != nil {
			return 0, err
		}
		if n, _ := c.Read(b); n > 0 {
			return n, nil
		}
		p.drop(c)
	}
}

func (p *port) Write(b []byte) (int, error) {
	c, err := p.current()
	if err != nil {
		return 0, err
	}
	if _, err := c.Write(b); err != nil {
		p.drop(c)
	}
	return len(b), nil
}

func (p *port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.conn != nil {
		p.conn.Close()
	}
	p.change.Broadcast()
	return nil
}

// rig is a host and a guest in one process, with a real relay per process.
type rig struct {
	t        testing.TB
	ctx      context.Context
	port     *port
	endpoint *stdio.Endpoint
	exits    chan [2]int // channel, code
	lost     chan uint32

	router  *router.Router
	session *link.Session
	serving chan error
}

func newRig(t testing.TB) *rig {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	r := &rig{t: t, ctx: ctx, port: newPort(), exits: make(chan [2]int, 64), lost: make(chan uint32, 64)}
	r.endpoint = stdio.NewEndpoint(stdio.EndpointConfig{Warn: func(channel uint32, err error) {
		t.Errorf("the agent was told nonsense on channel %d: %v", channel, err)
	}})
	listener := link.Listen(r.port)
	agent := make(chan struct{})
	go func() {
		defer close(agent)
		for {
			s, err := listener.Accept(ctx)
			if err != nil {
				return
			}
			r.endpoint.Serve(ctx, s)
		}
	}()
	r.newRouter()
	r.newSession()
	t.Cleanup(func() {
		r.router.Close()
		cancel()
		listener.Close()
		<-agent
	})
	return r
}

func (r *rig) newRouter() {
	r.router = router.New(router.Config{
		OnExit:      func(channel uint32, code int, _ bool) { r.exits <- [2]int{int(channel), code} },
		OnRelayLost: func(channel uint32, _ bool) { r.lost <- channel },
	})
}

// newSession opens a guest link session as a worker does.
func (r *rig) newSession() {
	r.t.Helper()
	if r.session != nil {
		r.session.Close()
		<-r.serving
	}
	host, guest := connPair(r.t)
	r.port.plug(guest)
	s, err := link.Dial(r.ctx, host)
	if err != nil {
		r.t.Fatal(err)
	}
	serving := make(chan error, 1)
	rt := r.router
	go func() { serving <- rt.ServeGuest(r.ctx, s) }()
	r.session, r.serving = s, serving
}

func connPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// container is a process in the "guest" and its relay.
type container struct {
	relay          *shadow.Relay
	stdin          *os.File // the engine's ends
	stdout, stderr *os.File
	process        *stdio.Process
	cmd            *exec.Cmd
	signals        chan int
	deaf           atomic.Bool // signals are noted, not delivered
}

type option func(*shadow.Spec)

// run starts argv in the guest and a relay for it on the host.
func (r *rig) run(channel uint32, argv []string, options ...option) *container {
	r.t.Helper()
	c := &container{signals: make(chan int, 100)}
	c.relay = r.startRelay(c, options...)
	r.attach(channel, c.relay.Socket)
	c.cmd = exec.Command(argv[0], argv[1:]...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, inW := pipe(r.t)
	out, outW := pipe(r.t)
	errR, errW := pipe(r.t)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = in, outW, errW
	r.start(channel, c, stdio.Streams{Stdin: inW, Stdout: out, Stderr: errR})
	in.Close()
	outW.Close()
	errW.Close()
	return c
}

func (r *rig) start(channel uint32, c *container, streams stdio.Streams) {
	r.t.Helper()
	if err := c.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	streams.Signal = func(n int) {
		c.signals <- n
		if c.deaf.Load() {
			return
		}
		c.cmd.Process.Signal(syscall.Signal(n))
	}
	var err error
	if c.process, err = r.endpoint.Open(channel, streams); err != nil {
		r.t.Fatal(err)
	}
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		c.cmd.Wait()
		code := c.cmd.ProcessState.ExitCode()
		if ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
		c.process.Exited(code, false)
	}()
	r.t.Cleanup(func() {
		syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		c.cmd.Process.Kill()
		<-waited
		c.process.Close()
	})
}

func (r *rig) startRelay(c *container, options ...option) *shadow.Relay {
	r.t.Helper()
	spec := shadow.Spec{Binary: relayBinary, Args: []string{"some", "process"}, RelayDir: r.t.TempDir()}
	for _, o := range options {
		o(&spec)
	}
	if spec.Terminal == nil && spec.Stdin == nil {
		var in, out, errW *os.File
		in, c.stdin = pipe(r.t)
		c.stdout, out = pipe(r.t)
		c.stderr, errW = pipe(r.t)
		spec.Stdin, spec.Stdout, spec.Stderr = in, out, errW
		defer func() { in.Close(); out.Close(); errW.Close() }()
	}
	relay, err := shadow.Start(r.ctx, spec)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := relay.Commit(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { relay.Kill() })
	return relay
}

func (r *rig) attach(channel uint32, socket string) {
	r.t.Helper()
	if err := r.router.Attach(r.ctx, channel, socket, nil); err != nil {
		r.t.Fatal(err)
	}
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// patience bounds each wait, on a machine that has other things to do.
const patience = 30 * time.Second

// code waits for the relay's end.
func (c *container) code(t testing.TB, within time.Duration) int {
	t.Helper()
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := c.relay.Wait()
		done <- result{code, err}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			t.Fatal(got.err)
		}
		if _, err := os.Lstat(c.relay.Socket); !errors.Is(err, os.ErrNotExist) && got.code != 137 {
			t.Errorf("the relay left its socket behind: %v", err)
		}
		return got.code
	case <-time.After(within):
		t.Fatalf("the relay is still there after %v", within)
		return 0
	}
}
