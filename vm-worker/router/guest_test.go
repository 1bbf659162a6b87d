// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"bulkhead/bus/stdio"
	"bulkhead/vm-worker/router"
)

func TestGuestThatBreaksTheRulesLosesItsSession(t *testing.T) {
	data := func(stream uint8, off uint64, n int) []byte {
		b := make([]byte, stdio.HeaderSize+n)
		stdio.Header{Type: stdio.TypeData, Stream: stream, Channel: 1, Off: off, Len: uint32(n)}.Put(b)
		return b
	}
	cases := map[string]struct {
		frame []byte
		flood bool
	}{
		"no frame":               {[]byte("hello"), false},
		"data beyond the window": {data(1, stdio.Window, 1), false},
		"standard input":         {data(0, 0, 1), false},
		"a frame for agents":     {stdio.AppendSignal(nil, 1, 1, 9), false},
		"ack of its own output":  {stdio.AppendWindow(nil, stdio.TypeAck, 1, 0, 1, 0, 0), false},
		"a flood of syncs":       {stdio.AppendSimple(nil, stdio.TypeSync, 0, 1, 0), true},
		"the same output again":  {data(1, 0, stdio.MaxData), true},
		"exits without end":      {stdio.AppendExit(nil, 0, 1, 0, 1, 1), true},
		"unknown channels":       {stdio.AppendSimple(nil, stdio.TypeSync, 0, 77, 0), true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			rt := router.New(router.Config{})
			t.Cleanup(rt.Close)
			rg := &rig{t: t, ctx: t.Context(), router: rt}
			relay := rg.startRelay(&container{})
			rg.attach(1, relay.Socket)
			g := newFakeGuest()
			served := make(chan error, 1)
			go func() { served <- rt.ServeGuest(t.Context(), g) }()
			g.await(stdio.TypeResume, stdio.TypeSync) // the relay has granted its windows
			// On a busy machine a flood comes in pieces, of which each may be within what is allowed.
			for began := time.Now(); g.say(c.frame) && c.flood && time.Since(began) < patience; {
			}
			if err := receive(t, served); !errors.Is(err, router.ErrViolation) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestGuestThatCutsItsOutputSmallIsSlowedNotCut holds for a process that writes
// byte by byte: that is its right, and costs the host no more than a full stream.
func TestGuestThatCutsItsOutputSmallIsSlowedNotCut(t *testing.T) {
	rt := router.New(router.Config{})
	t.Cleanup(rt.Close)
	rg := &rig{t: t, ctx: t.Context(), router: rt}
	c := &container{}
	c.relay = rg.startRelay(c)
	rg.attach(1, c.relay.Socket)
	go io.Copy(io.Discard, c.stdout)
	g := newFakeGuest()
	served := make(chan error, 1)
	go func() { served <- rt.ServeGuest(t.Context(), g) }()
	g.await(stdio.TypeResume, stdio.TypeSync)
	began := time.Now()
	const frames = 100_000
	frame := make([]byte, stdio.HeaderSize+1)
	for off := range uint64(frames) {
		stdio.Header{Type: stdio.TypeData, Stream: 1, Channel: 1, Off: off, Len: 1}.Put(frame)
		if !g.say(bytes.Clone(frame)) {
			t.Fatalf("cut after %d bytes: %v", off, receive(t, served))
		}
	}
	// 250 ms of the rate are free.
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("%d frames were taken in %v", frames, took)
	}
	g.Close()
	receive(t, served)
}

// fakeGuest is a session whose guest is the test.
type fakeGuest struct {
	in, out chan []byte
	done    chan struct{}
	once    sync.Once
}

func newFakeGuest() *fakeGuest {
	return &fakeGuest{in: make(chan []byte), out: make(chan []byte), done: make(chan struct{})}
}

func (g *fakeGuest) Close() error {
	g.once.Do(func() { close(g.done) })
	return nil
}

func (g *fakeGuest) Send(b []byte) error {
	select {
	case g.out <- bytes.Clone(b):
		return nil
	case <-g.done:
		return io.ErrClosedPipe
	}
}

func (g *fakeGuest) Recv() ([]byte, error) {
	select {
	case b := <-g.in:
		return b, nil
	case <-g.done:
		return nil, io.EOF
	}
}

// await takes frames until one of each type has come, and goes on taking them.
func (g *fakeGuest) await(types ...stdio.Type) {
	seen := map[stdio.Type]bool{}
	for {
		f, err := stdio.Parse(<-g.out)
		if err == nil {
			seen[f.Type] = true
		}
		missing := false
		for _, want := range types {
			missing = missing || !seen[want]
		}
		if !missing {
			break
		}
	}
	go func() {
		for {
			select {
			case <-g.out:
			case <-g.done:
				return
			}
		}
	}()
}

func (g *fakeGuest) say(b []byte) bool {
	select {
	case g.in <- b:
		return true
	case <-g.done:
		return false
	}
}
