// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// pipe is a session without a link beneath it.
type pipe struct {
	in, out chan []byte
	done    chan struct{}
	once    *sync.Once
	last    []byte
}

func pipes() (a, b *pipe) {
	x, y, done, once := make(chan []byte, 4), make(chan []byte, 4), make(chan struct{}), new(sync.Once)
	return &pipe{in: x, out: y, done: done, once: once}, &pipe{in: y, out: x, done: done, once: once}
}

func (p *pipe) Send(b []byte) error {
	select {
	case p.out <- append([]byte(nil), b...):
		return nil
	case <-p.done:
		return io.ErrClosedPipe
	}
}

func (p *pipe) Recv() ([]byte, error) {
	for i := range p.last {
		p.last[i] = 0xee // what was returned is valid until the next call, and no longer
	}
	select {
	case p.last = <-p.in:
		return p.last, nil
	case <-p.done:
		return nil, io.EOF
	}
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// pair is a guest and a host whose dials reach a server of the test.
type pair struct {
	guest, host *Mux
	hostErr     chan error
	close       func()
}

func newPair(t *testing.T, flows int, idle time.Duration, dial func(context.Context, Target) (Conn, error)) *pair {
	a, b := pipes()
	p := &pair{hostErr: make(chan error, 1)}
	p.guest = New(a, Config{MaxFlows: 2 * flows, Idle: idle})
	p.host = New(b, Config{MaxFlows: flows, Idle: idle, Dials: 4, DialTime: 5 * time.Second, Dial: dial})
	ctx, cancel := context.WithCancel(context.Background())
	var both sync.WaitGroup
	both.Go(func() { p.guest.Serve(ctx) })
	both.Go(func() { p.hostErr <- p.host.Serve(ctx) })
	p.close = func() { cancel(); both.Wait() }
	t.Cleanup(p.close)
	return p
}

func dialer(address func(Target) string) func(context.Context, Target) (Conn, error) {
	return func(ctx context.Context, t Target) (Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, t.Protocol.String(), address(t))
	}
}

// connection makes a TCP connection of this machine: what the program has, and what
// the Mux carries.
func connection(t *testing.T) (program, carried *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); c.Close() })
	p.SetDeadline(time.Now().Add(30 * time.Second))
	return p.(*net.TCPConn), c.(*net.TCPConn)
}

func target(p Protocol, port int) Target {
	return Target{p, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.11"), uint16(port))}
}

func listenTCP(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	return l.Addr().String()
}

func TestStreamsAreExactBesideEachOther(t *testing.T) {
	echo := listenTCP(t, func(c net.Conn) { io.Copy(c, c); c.(*net.TCPConn).CloseWrite() })
	p := newPair(t, 64, time.Minute, dialer(func(Target) string { return echo }))
	var all sync.WaitGroup
	for i := range 20 {
		program, carried := connection(t)
		if err := p.guest.Open(target(TCP, 53), carried); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 100_000*i+i)
		random := rand.New(rand.NewPCG(uint64(i), 1))
		for k := range data {
			data[k] = byte(random.Uint32())
		}
		all.Go(func() {
			go func() { program.Write(data); program.CloseWrite() }()
			got, err := io.ReadAll(program)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes of %d came back: %v", len(got), len(data), err)
			}
		})
	}
	all.Wait()
	settles(t, "flows are left", func() bool { return p.guest.Flows() == 0 && p.host.Flows() == 0 })
}

func settles(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// A program that reads nothing stops its own stream alone, and holds no more than a window.
func TestAStreamThatStandsStillHoldsUpNoOther(t *testing.T) {
	flood := listenTCP(t, func(c net.Conn) { io.Copy(c, forever{}) })
	echo := listenTCP(t, func(c net.Conn) { io.Copy(c, c) })
	p := newPair(t, 64, time.Minute, dialer(func(t Target) string {
		if t.Address.Port() == 1 {
			return flood
		}
		return echo
	}))
	for range 10 {
		_, carried := connection(t)
		if err := p.guest.Open(target(TCP, 1), carried); err != nil {
			t.Fatal(err)
		}
	}
	program, carried := connection(t)
	if err := p.guest.Open(target(TCP, 2), carried); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		want := []byte(fmt.Sprint("question ", i))
		program.Write(want)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(program, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q: %v", got, err)
		}
	}
}

type forever struct{}

func (forever) Read(b []byte) (int, error) { return len(b), nil }

func TestRefusedConnectionsAreReset(t *testing.T) {
	p := newPair(t, 64, time.Minute, func(context.Context, Target) (Conn, error) { return nil, errors.New("no") })
	program, carried := connection(t)
	if err := p.guest.Open(target(TCP, 53), carried); err != nil {
		t.Fatal(err)
	}
	if _, err := program.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the program reads %v", err)
	}
}

func TestTheEndOfTheSessionCutsConnections(t *testing.T) {
	echo := listenTCP(t, func(c net.Conn) { io.Copy(c, c) })
	p := newPair(t, 64, time.Minute, dialer(func(Target) string { return echo }))
	program, carried := connection(t)
	if err := p.guest.Open(target(TCP, 53), carried); err != nil {
		t.Fatal(err)
	}
	program.Write([]byte("x"))
	program.Read(make([]byte, 1))
	p.close()
	if _, err := program.Read(make([]byte, 1)); err == nil {
		t.Error("the connection lives on")
	}
	_, late := connection(t)
	if err := p.guest.Open(target(TCP, 53), late); err == nil {
		t.Error("a connection is taken after the end")
	}
}

// peer is a UDP peer in the guest.
type peer struct {
	in   chan []byte
	out  chan []byte
	done chan struct{}
	once sync.Once
}

func newPeer() *peer {
	return &peer{in: make(chan []byte, 10), out: make(chan []byte, 1000), done: make(chan struct{})}
}

func (p *peer) Read(b []byte) (int, error) {
	select {
	case m := <-p.in:
		return copy(b, m), nil
	case <-p.done:
		return 0, net.ErrClosed
	}
}
func (p *peer) Write(b []byte) (int, error) {
	p.out <- append([]byte(nil), b...)
	return len(b), nil
}
func (p *peer) Close() error { p.once.Do(func() { close(p.done) }); return nil }

func echoUDP(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	}()
	return c.LocalAddr().String()
}

func TestDatagramsKeepTheirBounds(t *testing.T) {
	echo := echoUDP(t)
	p := newPair(t, 64, time.Minute, dialer(func(Target) string { return echo }))
	peer := newPeer()
	if err := p.guest.Open(target(UDP, 53), peer); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 0, 1232, 4096, MaxDatagram} {
		want := bytes.Repeat([]byte("d"), size)
		peer.in <- want
		select {
		case got := <-peer.out:
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes came back of %d", len(got), size)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("a datagram of %d bytes is lost", size)
		}
	}
}

func TestIdleFlowsEnd(t *testing.T) {
	echo := echoUDP(t)
	p := newPair(t, 64, 100*time.Millisecond, dialer(func(Target) string { return echo }))
	peer := newPeer()
	if err := p.guest.Open(target(UDP, 53), peer); err != nil {
		t.Fatal(err)
	}
	select {
	case <-peer.done:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	settles(t, "a flow is left", func() bool { return p.guest.Flows() == 0 && p.host.Flows() == 0 })
}

// However many questions are asked from ports of their own, the newest is answered.
func TestUDPFlowsGiveWayToNewOnes(t *testing.T) {
	echo := echoUDP(t)
	p := newPair(t, 8, time.Minute, dialer(func(Target) string { return echo }))
	for i := range 100 {
		peer := newPeer()
		if err := p.guest.Open(target(UDP, 53), peer); err != nil {
			t.Fatal(err)
		}
		peer.in <- []byte{byte(i)}
		select {
		case got := <-peer.out:
			if got[0] != byte(i) {
				t.Fatalf("answer %d to question %d", got[0], i)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("question %d is not answered", i)
		}
	}
	settles(t, "more flows than allowed", func() bool { return p.host.Flows() <= 8 })
}

// What a hostile guest says ends its session, or has no effect; it never takes more
// memory than the windows.
func TestAGuestThatBreaksTheRulesIsCut(t *testing.T) {
	data := func(id uint32, n int) []byte { return append(simple(typeData, id), make([]byte, n)...) }
	open := openFrame(1, target(TCP, 53))
	for name, frames := range map[string][][]byte{
		"a stump":                {{1, 2}},
		"an unknown type":        {simple(9, 1)},
		"an unknown protocol":    {append([]byte{1, 99}, open[2:]...)},
		"a short open":           {open[:12]},
		"a flow opened twice":    {open, open},
		"data past the window":   {open, data(1, 32000), data(1, 32000), data(1, 32000)},
		"data after the end":     {open, simple(typeEOF, 1), data(1, 1)},
		"two ends":               {open, simple(typeEOF, 1), simple(typeEOF, 1)},
		"credit out of thin air": {open, creditFrame(1, Window)},
		"no credit":              {open, creditFrame(1, 0)},
		"an end with payload":    {append(simple(typeEOF, 1), 1)},
		"a long frame":           {data(1, MaxDatagram+1)},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pipes()
			host := New(b, Config{MaxFlows: 8, Idle: time.Minute, Dials: 1, DialTime: time.Minute,
				Dial: func(ctx context.Context, _ Target) (Conn, error) { <-ctx.Done(); return nil, ctx.Err() }})
			done := make(chan error, 1)
			go func() { done <- host.Serve(context.Background()) }()
			for _, f := range frames {
				a.Send(f)
			}
			select {
			case err := <-done:
				if !errors.Is(err, ErrViolation) {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Error("the session lives on")
				a.Close()
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(openFrame(7, target(UDP, 53)))
	f.Add(creditFrame(7, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := parse(b)
		if err == nil && len(fr.payload) > MaxDatagram {
			t.Fatal("too long")
		}
	})
}
