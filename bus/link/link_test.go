// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// echoGuest answers each message with itself until the listener is closed.
func echoGuest(t *testing.T, s *serial) {
	l := Listen(s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			session, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			for {
				m, err := session.Recv()
				if err != nil {
					break
				}
				if err := session.Send(m); err != nil {
					break
				}
			}
			session.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func exchange(t *testing.T, s *Session, m []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() { sent <- s.Send(m) }()
	got, err := s.Recv()
	if err != nil || !bytes.Equal(got, m) {
		t.Fatalf("%d bytes back of %d: %v", len(got), len(m), err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestMessagesArriveWholeAndInOrder(t *testing.T) {
	s := newSerial()
	echoGuest(t, s)
	session, err := Dial(within(t, 30*time.Second), s.connect(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	for _, n := range []int{0, 1, 7, 4096, MaxMessage - 1, MaxMessage} {
		m := make([]byte, n)
		for i := range m {
			m[i] = byte(rand.Uint32())
		}
		exchange(t, session, m)
	}
	if err := session.Send(make([]byte, MaxMessage+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("too long a message: %v", err)
	}
}

func TestTwoHundredReconnectsThroughGarbage(t *testing.T) {
	s := newSerial()
	echoGuest(t, s)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		garbage := make([]byte, random.IntN(3*MaxFrame))
		for k := range garbage {
			garbage[k] = byte(random.Uint32())
		}
		// Also garbage that looks like frames, and runs of zero bytes.
		var frame [MaxFrame]byte
		n := putFrame(frame[:], byte(random.IntN(6)), random.Uint64(), garbage[:min(len(garbage), MaxMessage)])
		s.inject(frame[:random.IntN(n)], frame[:random.IntN(n)])
		s.inject(garbage, garbage)
		s.inject(make([]byte, random.IntN(quiet)), nil)

		session, err := Dial(within(t, 30*time.Second), s.connect(-1))
		if err != nil {
			t.Fatalf("reconnect %d: %v", i, err)
		}
		exchange(t, session, []byte(fmt.Sprint("hello ", i)))
		if i%2 == 0 {
			session.Close() // else it vanishes without a word
		}
	}
}

func TestSessionSurvivesAnEarlierOneCutAtAnyByte(t *testing.T) {
	message := bytes.Repeat([]byte("m"), 50)
	whole := padding + headerSize + trailerSize + headerSize + len(message) + trailerSize
	cuts := []int{0, 1, quiet - 1, quiet, padding - 1}
	for c := padding; c <= whole; c++ {
		cuts = append(cuts, c)
	}
	s := newSerial()
	echoGuest(t, s)
	for _, cut := range cuts {
		first := s.connect(cut)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if cut < padding+headerSize+trailerSize {
			cancel() // it never gets an answer
		}
		if session, err := Dial(ctx, first); err == nil {
			session.Send(message)
		}
		first.Close()
		cancel()
		second, err := Dial(within(t, 30*time.Second), s.connect(-1))
		if err != nil {
			t.Fatalf("after a cut at byte %d: %v", cut, err)
		}
		exchange(t, second, []byte("second"))
		second.conn().Close()
	}
}

func (s *Session) conn() net.Conn { return s.end.(*hostEnd).conn }

func TestNewHelloEndsTheEarlierSession(t *testing.T) {
	s := newSerial()
	l := Listen(s)
	defer l.Close()
	ctx := within(t, 30*time.Second)
	var sessions [2]*Session
	for i := range sessions {
		if _, err := Dial(ctx, s.connect(-1)); err != nil {
			t.Fatal(err)
		}
		var err error
		if sessions[i], err = l.Accept(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sessions[0].Recv(); !errors.Is(err, ErrReset) {
		t.Errorf("Recv on the earlier session: %v", err)
	}
	if err := sessions[0].Send([]byte("x")); !errors.Is(err, ErrReset) {
		t.Errorf("Send on the earlier session: %v", err)
	}
	if err := sessions[1].Err(); err != nil {
		t.Errorf("the new session: %v", err)
	}
}

func TestPayloadCannotImitateASession(t *testing.T) {
	p := newParser()
	var fake [headerSize + trailerSize]byte
	putFrame(fake[:], typeHello, 99, nil)
	payload := append(make([]byte, MaxMessage-len(fake)), fake[:]...)
	var frame [MaxFrame]byte
	n := putFrame(frame[:], typeMessage, 1, payload)
	n -= trailerSize // torn: the guest looks at the payload for the next session
	for b := frame[:n]; len(b) > 0; {
		k := copy(p.room(), b)
		p.filled(k)
		b = b[k:]
		if ev, ok := p.next(1, true); ok {
			t.Fatalf("found a frame of type %d in a payload", ev.kind)
		}
	}
	for b := make([]byte, padding); len(b) > 0; {
		k := copy(p.room(), b)
		p.filled(k)
		b = b[k:]
		if ev, ok := p.next(1, true); ok {
			t.Fatalf("found a frame of type %d", ev.kind)
		}
	}
	p.filled(copy(p.room(), fake[:]))
	if ev, ok := p.next(1, true); !ok || ev.kind != typeHello || ev.nonce != 99 {
		t.Error("the true HELLO was missed")
	}
}

func TestHostEndsTheSessionOnAnyDeviation(t *testing.T) {
	frame := func(kind byte, nonce uint64, n int) []byte {
		b := make([]byte, MaxFrame)
		return b[:putFrame(b, kind, nonce, make([]byte, n))]
	}
	long := frame(typeMessage, 7, 100)
	long[8] = 0xff
	long[9] = 0xff
	torn := frame(typeMessage, 7, 100)
	torn[len(torn)-1] ^= 1
	cases := map[string][]byte{
		"garbage":         bytes.Repeat([]byte("x"), 100),
		"another session": frame(typeMessage, 8, 1),
		"hello":           frame(typeHello, 7, 0),
		"wrong length":    long,
		"torn":            torn,
		"ack with data":   append(frame(typeAck, 7, 0)[:8], make([]byte, 100)...),
	}
	for name, bad := range cases {
		t.Run(name, func(t *testing.T) {
			mine, theirs := net.Pipe()
			defer theirs.Close()
			s := newSession(7, &hostEnd{conn: mine, buf: make([]byte, MaxFrame)})
			defer s.Close()
			go theirs.Write(append(frame(typeMessage, 7, 5), bad...))
			if m, err := s.Recv(); err != nil || len(m) != 5 {
				t.Fatalf("the good message: %d bytes, %v", len(m), err)
			}
			if _, err := s.Recv(); !errors.Is(err, ErrProtocol) {
				t.Errorf("the bad one: %v", err)
			}
		})
	}
}

func TestDialWaitsNoLongerThanItsContext(t *testing.T) {
	mine, theirs := net.Pipe()
	go io.Copy(io.Discard, theirs) // a mute guest
	defer theirs.Close()
	if _, err := Dial(within(t, 50*time.Millisecond), mine); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestNetConnCarriesAStreamAndHasDeadlines(t *testing.T) {
	s := newSerial()
	l := Listen(s)
	defer l.Close()
	ctx := within(t, 30*time.Second)
	host, err := Dial(ctx, s.connect(-1))
	if err != nil {
		t.Fatal(err)
	}
	guest, err := l.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]net.Conn{"host": host.NetConn(), "guest": guest.NetConn()} {
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		c.SetReadDeadline(time.Time{})
	}
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(i * 7)
	}
	go host.NetConn().Write(data)
	got := make([]byte, len(data))
	if _, err := io.ReadFull(guest.NetConn(), got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("host to guest: %v", err)
	}
	go guest.NetConn().Write(data)
	clear(got)
	if _, err := io.ReadFull(host.NetConn(), got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("guest to host: %v", err)
	}
	guest.Close()
	if _, err := host.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the guest's Close: %v", err)
	}
}

func BenchmarkThroughput(b *testing.B) {
	host, guest := net.Pipe()
	l := Listen(guest)
	defer l.Close()
	s, err := Dial(context.Background(), host)
	if err != nil {
		b.Fatal(err)
	}
	g, err := l.Accept(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			if _, err := g.Recv(); err != nil {
				return
			}
		}
	}()
	m := make([]byte, MaxMessage)
	b.SetBytes(int64(len(m)))
	for b.Loop() {
		if err := s.Send(m); err != nil {
			b.Fatal(err)
		}
	}
}
