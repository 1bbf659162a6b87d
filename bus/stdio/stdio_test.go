// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

func TestFramesSurviveEncoding(t *testing.T) {
	exit, err := Parse(AppendExit(nil, 0, 5, 42, 100, 1<<40))
	if err != nil || exit.Channel != 5 || exit.Code() != 42 || exit.End(Stdout) != 100 || exit.End(Stderr) != 1<<40 {
		t.Errorf("EXIT %+v, %v", exit, err)
	}
	ack, err := Parse(AppendWindow(nil, TypeAck, Stderr, FlagEOF, 6, 7, 8))
	if err != nil || ack.Stream != Stderr || ack.Flags != FlagEOF || ack.Off != 7 || ack.Limit() != 8 {
		t.Errorf("ACK %+v, %v", ack, err)
	}
	signal, err := Parse(AppendSignal(nil, 1, 3, 15))
	if err != nil || signal.Off != 3 || signal.Signal() != 15 {
		t.Errorf("SIGNAL %+v, %v", signal, err)
	}
	size, err := Parse(AppendWinsize(nil, 1, 24, 80))
	if rows, cols := size.Winsize(); err != nil || rows != 24 || cols != 80 {
		t.Errorf("WINSIZE %+v, %v", size, err)
	}
	gone, err := Parse(AppendGone(nil, 1, 137, string(make([]byte, 5000))))
	if err != nil || gone.Code() != 137 || len(gone.Reason()) != MaxReason {
		t.Errorf("GONE %+v, %v", gone.Header, err)
	}
}

func TestParseRefuses(t *testing.T) {
	cases := map[string][]byte{
		"short":             make([]byte, HeaderSize-1),
		"no type":           AppendSimple(nil, 0, 0, 0, 0),
		"unknown type":      AppendSimple(nil, typeEnd, 0, 0, 0),
		"stream 3":          AppendSimple(nil, TypeEOF, 3, 0, 0),
		"data without data": AppendSimple(nil, TypeData, 1, 0, 0),
		"payload too long":  append(AppendSimple(nil, TypeSync, 0, 0, 0), 1),
		"huge offset":       AppendSimple(nil, TypeEOF, 1, 0, 1<<63),
		"limit before off":  AppendWindow(nil, TypeAck, 1, 0, 0, 10, 9),
		"exit code 256":     AppendExit(nil, 0, 0, 256, 0, 0),
		"signal 0":          AppendSignal(nil, 0, 1, 0),
		"signal 65":         AppendSignal(nil, 0, 1, 65),
	}
	for name, b := range cases {
		if _, err := Parse(b); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(AppendExit(nil, FlagOOM, 5, 42, 100, 1))
	f.Add(AppendWindow(nil, TypeAck, Stderr, FlagEOF, 6, 7, 8))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := Parse(b)
		if err != nil {
			return
		}
		again := frame.Header.append(nil)
		if !bytes.Equal(append(again, frame.Payload...), b) {
			t.Fatalf("%x reads as %+v", b, frame)
		}
	})
}

func TestRingHoldsWhatWasWrittenAndGivesMemoryBack(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	r := NewRing(64 << 10)
	var model []byte
	var base uint64
	for range 5000 {
		p := make([]byte, random.IntN(20_000))
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		n := r.Write(p)
		if want := min(len(p), 64<<10-len(model)); n != want {
			t.Fatalf("took %d of %d, want %d", n, len(p), want)
		}
		model = append(model, p[:n]...)
		k := random.IntN(len(model) + 1)
		got := make([]byte, len(model))
		if r.CopyAt(got, base) != len(model) || !bytes.Equal(got, model) {
			t.Fatal("the contents differ")
		}
		base += uint64(k)
		r.Free(base)
		model = model[k:]
		if r.Base() != base || r.Len() != len(model) {
			t.Fatalf("[%d, +%d), want [%d, +%d)", r.Base(), r.Len(), base, len(model))
		}
	}
	r.Free(r.End())
	if cap(r.buf) > ringKeep {
		t.Errorf("an empty ring holds %d bytes", cap(r.buf))
	}
	r.Release()
	if cap(r.buf) != 0 {
		t.Errorf("a released ring holds %d bytes", cap(r.buf))
	}
}

// TestStreamIsExactOverALossyLink runs a sender and a receiver over a link
// that drops, repeats and cuts off at random, with SYNC after each loss.
func TestStreamIsExactOverALossyLink(t *testing.T) {
	for seed := range uint64(12) {
		random := rand.New(rand.NewPCG(seed, 9))
		data := make([]byte, 1<<20)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		s, r := NewSender(), NewReceiver()
		var got []byte
		written := 0
		answer := func(b []byte) {
			f, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			take := s.Ack
			if f.Type == TypeResume {
				take = s.Resume
			}
			if err := take(f.Off, f.Limit(), f.Flags); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		for round := 0; !(s.eofAcked && s.ring.Len() == 0); round++ {
			if round > 1_000_000 {
				t.Fatalf("seed %d: no end; %d written, %d received", seed, written, len(got))
			}
			if written < len(data) {
				written += s.Write(data[written:min(len(data), written+random.IntN(50_000))])
				if written == len(data) {
					s.End()
				}
			}
			if s.Ready() {
				frame := s.AppendNext(nil, Stdout, 1)
				times := 1
				switch random.IntN(20) {
				case 0:
					times = 0
				case 1:
					times = 2
				}
				for range times {
					f, err := Parse(frame)
					if err != nil {
						t.Fatal(err)
					}
					var resume bool
					if f.Type == TypeData {
						resume, err = r.Data(f.Off, f.Payload)
					} else if r.eof && f.Off == r.end {
						continue
					} else {
						resume, err = r.EOF(f.Off)
					}
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					if resume && random.IntN(4) > 0 {
						answer(r.AppendResume(nil, Stdout, 1))
					}
				}
			}
			buf := make([]byte, random.IntN(60_000))
			n := r.Next(buf)
			got = append(got, buf[:n]...)
			if r.Done(n) && random.IntN(4) > 0 {
				answer(r.AppendAck(nil, Stdout, 1))
			}
			if r.Ended() {
				r.PassedEOF()
			}
			if !s.Ready() || random.IntN(50) == 0 { // SYNC
				s.Stall()
				answer(r.AppendAck(nil, Stdout, 1))
				answer(r.AppendResume(nil, Stdout, 1))
			}
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("seed %d: the stream differs", seed)
		}
	}
}

func TestReceiverRefusesWhatWasNotGranted(t *testing.T) {
	r := NewReceiver()
	if _, err := r.Data(Window, []byte("x")); !errors.Is(err, ErrWindow) {
		t.Errorf("beyond the window: %v", err)
	}
	if _, err := r.Data(0, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.EOF(2); !errors.Is(err, ErrOffset) {
		t.Errorf("an end before what came: %v", err)
	}
	if _, err := r.EOF(3); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Data(3, []byte("x")); !errors.Is(err, ErrWindow) {
		t.Errorf("after the end: %v", err)
	}
	s := NewSender()
	if err := s.Ack(1, Window, 0); !errors.Is(err, ErrOffset) {
		t.Errorf("an acknowledgement of nothing: %v", err)
	}
}

// loop is a session whose host is the test.
type loop struct {
	toAgent, toHost chan []byte
	end             chan struct{}
}

func (l loop) Send(b []byte) error { l.toHost <- bytes.Clone(b); return nil }
func (l loop) Close() error        { return nil }
func (l loop) Recv() ([]byte, error) {
	select {
	case b := <-l.toAgent:
		return b, nil
	case <-l.end:
		return nil, io.EOF
	}
}

func TestEndpointBoundsWhatItTakesFromAProcess(t *testing.T) {
	e := NewEndpoint(EndpointConfig{})
	out, process, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	p, err := e.Open(1, Streams{Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	process.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	n, err := process.Write(make([]byte, 4<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > Window+(256<<10) {
		t.Errorf("the process wrote %d bytes that nobody took: %v", n, err)
	}
}

func TestOpenRefusesAChannelInUse(t *testing.T) {
	e := NewEndpoint(EndpointConfig{})
	p, err := e.Open(1, Streams{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Open(1, Streams{}); !errors.Is(err, ErrChannelInUse) {
		t.Errorf("%v", err)
	}
	p.Close()
	again, err := e.Open(1, Streams{})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestExitIsRepeatedOnSyncUntilAcknowledged(t *testing.T) {
	e := NewEndpoint(EndpointConfig{})
	p, err := e.Open(4, Streams{})
	if err != nil {
		t.Fatal(err)
	}
	p.Exited(11, true)
	l := loop{make(chan []byte, 64), make(chan []byte), make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- e.Serve(t.Context(), l) }()
	next := func() Frame {
		for {
			f, err := Parse(<-l.toHost)
			if err != nil {
				t.Fatal(err)
			}
			if f.Type == TypeExit {
				return f
			}
			if f.Type == TypeSync { // as the relay answers it
				for _, s := range []uint8{Stdout, Stderr} {
					b := AppendWindow(nil, TypeResume, s, 0, 4, 0, Window)
					l.toAgent <- b
				}
			}
		}
	}
	for range 3 {
		if f := next(); f.Channel != 4 || f.Code() != 11 || f.Flags != FlagOOM {
			t.Errorf("EXIT %+v", f)
		}
		l.toAgent <- AppendSimple(nil, TypeSync, 0, 4, 0)
	}
	drained := make(chan struct{})
	go func() {
		for {
			select {
			case <-l.toHost:
			case <-drained:
				return
			}
		}
	}()
	l.toAgent <- AppendSimple(nil, TypeExitAck, 0, 4, 0)
	select {
	case <-p.Done():
	case <-time.After(30 * time.Second):
		t.Error("the acknowledgement was not taken")
	}
	close(l.end)
	<-served
	close(drained)
}
