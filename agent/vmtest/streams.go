// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"bulkhead/bus/link"
	"bulkhead/bus/stdio"
)

// streams plays the router and every relay of the VM.
type streams struct {
	mu      sync.Mutex // guards relays and session
	relays  map[uint32]*Relay
	session *link.Session
	next    uint32
}

// Relay is the host's end of one process's streams: it collects the output.
type Relay struct {
	Channel uint32

	s        *streams
	stdin    stdio.Sender
	out      [2]stdio.Receiver
	text     [2]bytes.Buffer
	signals  uint64
	code     int
	ends     [2]uint64
	hasCode  bool
	acked    bool
	finished chan struct{}
	grown    chan struct{} // replaced whenever output arrives
}

func newStreams() *streams { return &streams{relays: make(map[uint32]*Relay)} }

// NewRelay reserves a channel.
func (vm *VM) NewRelay() *Relay {
	s := vm.streams
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	r := &Relay{Channel: s.next, s: s, stdin: stdio.NewSender(), finished: make(chan struct{}), grown: make(chan struct{})}
	r.out[0], r.out[1] = stdio.NewReceiver(), stdio.NewReceiver()
	s.relays[r.Channel] = r
	return r
}

// Wait returns the exit code after all output has arrived.
func (r *Relay) Wait(ctx context.Context) (int, error) {
	select {
	case <-r.finished:
		return r.code, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("waiting for the exit on channel %d: %w; output so far %q", r.Channel, ctx.Err(), r.Output())
	}
}

// Output is what came on standard output so far.
func (r *Relay) Output() string { return r.read(0) }

// ErrOutput is what came on standard error so far.
func (r *Relay) ErrOutput() string { return r.read(1) }

func (r *Relay) read(i int) string {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.text[i].String()
}

// Until waits for text on standard output.
func (r *Relay) Until(ctx context.Context, text string) error {
	for {
		r.s.mu.Lock()
		seen, grown := bytes.Contains(r.text[0].Bytes(), []byte(text)), r.grown
		r.s.mu.Unlock()
		if seen {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %q on channel %d: %w; output so far %q %q", text, r.Channel, ctx.Err(), r.Output(), r.ErrOutput())
		}
	}
}

// Input sends bytes; they must fit the window.
func (r *Relay) Input(text string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.stdin.Write([]byte(text))
	r.flush()
}

// CloseInput ends the process's standard input.
func (r *Relay) CloseInput() {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.stdin.End()
	r.flush()
}

// Resize sends a terminal size.
func (r *Relay) Resize(rows, cols uint16) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.send(stdio.AppendWinsize(nil, r.Channel, rows, cols))
}

// Signal sends a signal over the streams, as a relay that was signalled does.
func (r *Relay) Signal(n int) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.signals++
	r.s.send(stdio.AppendSignal(nil, r.Channel, r.signals, n))
}

func (r *Relay) flush() {
	for r.stdin.Ready() {
		r.s.send(r.stdin.AppendNext(nil, 0, r.Channel))
	}
}

func (s *streams) send(frame []byte) {
	if s.session != nil {
		// A broken session shows in Recv.
		_ = s.session.Send(frame)
	}
}

func (s *streams) serve(session *link.Session) {
	s.mu.Lock()
	s.session = session
	for _, r := range s.relays {
		r.stdin.Stall()
		s.send(stdio.AppendSimple(nil, stdio.TypeSync, 0, r.Channel, 0))
		r.restate()
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.session = nil
		s.mu.Unlock()
	}()
	for {
		b, err := session.Recv()
		if err != nil {
			return
		}
		f, err := stdio.Parse(b)
		if err != nil {
			continue
		}
		s.mu.Lock()
		if r := s.relays[f.Channel]; r != nil {
			r.handle(f)
		}
		s.mu.Unlock()
	}
}

func (r *Relay) handle(f stdio.Frame) {
	switch f.Type {
	case stdio.TypeData:
		r.data(f)
	case stdio.TypeEOF:
		_, _ = r.out[f.Stream-1].EOF(f.Off)
	case stdio.TypeAck:
		_ = r.stdin.Ack(f.Off, f.Limit(), f.Flags)
		r.flush()
	case stdio.TypeResume:
		_ = r.stdin.Resume(f.Off, f.Limit(), f.Flags)
		r.flush()
	case stdio.TypeSync:
		r.restate()
	case stdio.TypeExit:
		r.hasCode, r.code = true, f.Code()
		r.ends = [2]uint64{f.End(1), f.End(2)}
	}
	if r.hasCode && !r.acked && r.out[0].Written() >= r.ends[0] && r.out[1].Written() >= r.ends[1] {
		r.acked = true
		close(r.finished)
	}
	if r.acked {
		r.s.send(stdio.AppendSimple(nil, stdio.TypeExitAck, 0, r.Channel, 0))
	}
}

// restate says how far the output has come.
func (r *Relay) restate() {
	for i := range r.out {
		r.s.send(r.out[i].AppendAck(nil, uint8(i+1), r.Channel))
		r.s.send(r.out[i].AppendResume(nil, uint8(i+1), r.Channel))
	}
}

func (r *Relay) data(f stdio.Frame) {
	i := int(f.Stream) - 1
	resume, err := r.out[i].Data(f.Off, f.Payload)
	if err != nil {
		return
	}
	if resume {
		r.s.send(r.out[i].AppendResume(nil, f.Stream, r.Channel))
	}
	buf := make([]byte, r.out[i].Pending())
	n := r.out[i].Next(buf)
	r.text[i].Write(buf[:n])
	if r.out[i].Done(n) {
		r.s.send(r.out[i].AppendAck(nil, f.Stream, r.Channel))
	}
	close(r.grown)
	r.grown = make(chan struct{})
}
