// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package rehearsal

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"bulkhead/bus/link"
	"bulkhead/bus/stdio"
)

// relays play the router and all relays: the host's ends of the processes' standard streams.
type relays struct {
	session *link.Session

	mu   sync.Mutex // guards all below, and what the relays hold
	all  map[uint32]*relay
	last uint32
}

// relay holds the streams of one process.
type relay struct {
	of      *relays
	channel uint32
	in      stdio.Sender
	out     [2]stdio.Receiver
	text    bytes.Buffer // what came on standard output
	exit    *stdio.Frame // its payload is kept apart
	ended   chan int     // receives the exit code, when all output is there
}

func newRelays(s *link.Session) *relays { return &relays{session: s, all: map[uint32]*relay{}} }

// open reserves the channel of a process.
func (rs *relays) open() *relay {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.last++
	r := &relay{of: rs, channel: rs.last, in: stdio.NewSender(), ended: make(chan int, 1)}
	r.out = [2]stdio.Receiver{stdio.NewReceiver(), stdio.NewReceiver()}
	rs.all[r.channel] = r
	return r
}

// serve takes what the processes say until the session ends.
func (rs *relays) serve() error {
	for {
		b, err := rs.session.Recv()
		if err != nil {
			return fmt.Errorf("the agent's streams: %w", err)
		}
		f, err := stdio.Parse(b)
		if err != nil {
			return fmt.Errorf("the agent's streams: %w", err)
		}
		rs.mu.Lock()
		if r := rs.all[f.Channel]; r != nil {
			err = r.take(f)
		}
		rs.mu.Unlock()
		if err != nil {
			return fmt.Errorf("the agent's streams: %w", err)
		}
	}
}

// take acts on one frame. The caller holds mu, as for all below.
func (r *relay) take(f stdio.Frame) error {
	var err error
	switch f.Type {
	case stdio.TypeData:
		err = r.data(f)
	case stdio.TypeEOF:
		_, err = r.out[f.Stream-1].EOF(f.Off)
	case stdio.TypeAck:
		err = r.in.Ack(f.Off, f.Limit(), f.Flags)
	case stdio.TypeResume:
		err = r.in.Resume(f.Off, f.Limit(), f.Flags)
	case stdio.TypeSync:
		for i := range r.out {
			err = r.send(r.out[i].AppendResume(nil, uint8(i+1), r.channel))
		}
	case stdio.TypeExit:
		f.Payload = bytes.Clone(f.Payload)
		r.exit = &f
	}
	if err == nil {
		err = r.flush()
	}
	if err != nil || r.exit == nil || r.out[0].Written() < r.exit.End(stdio.Stdout) || r.out[1].Written() < r.exit.End(stdio.Stderr) {
		return err
	}
	select {
	case r.ended <- r.exit.Code():
	default: // it was said before
	}
	return r.send(stdio.AppendSimple(nil, stdio.TypeExitAck, 0, r.channel, 0))
}

func (r *relay) data(f stdio.Frame) error {
	out := &r.out[f.Stream-1]
	resume, err := out.Data(f.Off, f.Payload)
	if err != nil {
		return err
	}
	if resume {
		return r.send(out.AppendResume(nil, f.Stream, r.channel))
	}
	buf := make([]byte, out.Pending())
	n := out.Next(buf)
	if f.Stream == stdio.Stdout {
		r.text.Write(buf[:n])
	}
	if out.Done(n) {
		return r.send(out.AppendAck(nil, f.Stream, r.channel))
	}
	return nil
}

func (r *relay) flush() error {
	for r.in.Ready() {
		if err := r.send(r.in.AppendNext(nil, stdio.Stdin, r.channel)); err != nil {
			return err
		}
	}
	return nil
}

func (r *relay) send(frame []byte) error { return r.of.session.Send(frame) }

// input writes to the process's standard input, and ends it if that is all.
func (r *relay) input(text string, all bool) error {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	r.in.Write([]byte(text)) // far less than the window
	if all {
		r.in.End()
	}
	return r.flush()
}

// wait waits for the end of the process, which should have this code and have written this.
func (r *relay) wait(ctx context.Context, code int, text string) error {
	select {
	case got := <-r.ended:
		r.of.mu.Lock()
		defer r.of.mu.Unlock()
		delete(r.of.all, r.channel)
		if got != code || !bytes.Contains(r.text.Bytes(), []byte(text)) {
			return fmt.Errorf("the process ended with %d and wrote %q, not with %d and %q", got, r.text.Bytes(), code, text)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the process to end: %w", ctx.Err())
	}
}
