// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
)

// Session carries whole frames; *link.Session is one. Recv's result is valid
// until the next call. Err of a closed session is the caller's business.
type Session interface {
	Send(frame []byte) error
	Recv() ([]byte, error)
	Close() error
}

// EndpointConfig configures an Endpoint.
type EndpointConfig struct {
	// Warn, if set, is told of frames from the host that make no sense, at most
	// once per session and channel. It must not block.
	Warn func(channel uint32, err error)
}

// Endpoint is the agent's end of every container process's standard streams in
// one guest. Processes and sessions come and go independently.
type Endpoint struct {
	cfg  EndpointConfig
	wake chan struct{} // capacity 1: something became ready

	mu    sync.Mutex // guards all below and the state of every process
	procs map[uint32]*Process
	ready []*Process // processes with something to send, each once
	serve sync.Mutex // one session at a time
}

// NewEndpoint makes an endpoint without processes.
func NewEndpoint(cfg EndpointConfig) *Endpoint {
	return &Endpoint{cfg: cfg, wake: make(chan struct{}, 1), procs: make(map[uint32]*Process)}
}

// Streams are the agent's ends of one process's standard streams. The endpoint
// owns the files from Open on and closes them.
type Streams struct {
	// Stdin is the write end of the process's standard input; nil for none.
	Stdin *os.File
	// Stdout and Stderr are the read ends of its output; nil for none.
	Stdout, Stderr *os.File
	// Terminal is the master of its pseudo-terminal; the three above are then nil.
	Terminal *os.File

	// Signal delivers a signal to the process; Hangup tells that the terminal on the
	// host is gone, beyond the closing of Terminal. Both may be nil and must not block.
	Signal func(n int)
	Hangup func()
}

var (
	// ErrChannelInUse refuses a channel number that another process has.
	ErrChannelInUse = errors.New("stdio: channel in use")
	// ErrStreams refuses Streams that contradict themselves.
	ErrStreams = errors.New("stdio: Terminal excludes Stdin, Stdout and Stderr")
)

// Open starts moving the streams of a process. The files may be in blocking
// mode; Open then makes non-blocking duplicates of its own.
func (e *Endpoint) Open(channel uint32, s Streams) (*Process, error) {
	p, err := newProcess(e, channel, s)
	if err != nil {
		return nil, fmt.Errorf("opening the streams of channel %d: %w", channel, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.procs[channel] != nil {
		p.closeFiles()
		return nil, fmt.Errorf("opening the streams of channel %d: %w", channel, ErrChannelInUse)
	}
	e.procs[channel] = p
	p.restate()
	p.syncPending = true
	e.markReady(p)
	p.start()
	return p, nil
}

// Serve moves frames over one session until it fails or ctx ends, and closes it.
// Call it again with the next session: nothing is lost or repeated in between.
func (e *Endpoint) Serve(ctx context.Context, s Session) error {
	e.serve.Lock()
	defer e.serve.Unlock()
	e.mu.Lock()
	for _, p := range e.procs {
		for i := range p.out {
			p.out[i].Stall()
		}
	}
	e.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() {
		s.Close()
		close(closed)
	})
	sent := make(chan error, 1)
	go func() {
		err := e.send(ctx, s)
		cancel()
		sent <- err
	}()
	err := e.receive(s)
	cancel()
	sendErr := <-sent
	<-closed
	if sendErr != nil && !errors.Is(sendErr, context.Canceled) {
		return sendErr
	}
	return err
}

// send writes frames in turn for each process that has some.
func (e *Endpoint) send(ctx context.Context, s Session) error {
	buf := make([]byte, 0, MaxFrame)
	for {
		frame := e.nextFrame(buf)
		if len(frame) == 0 {
			select {
			case <-e.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := s.Send(frame); err != nil {
			return fmt.Errorf("sending to the host: %w", err)
		}
	}
}

func (e *Endpoint) nextFrame(buf []byte) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.ready) > 0 {
		p := e.ready[0]
		e.ready = e.ready[:copy(e.ready, e.ready[1:])]
		p.queued = false
		if frame := p.appendNext(buf[:0]); len(frame) > 0 {
			e.markReady(p)
			return frame
		}
	}
	return nil
}

// markReady queues p for the sender. Callers hold e.mu.
func (e *Endpoint) markReady(p *Process) {
	if p.queued || p.forgotten {
		return
	}
	p.queued = true
	e.ready = append(e.ready, p)
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *Endpoint) receive(s Session) error {
	warned := make(map[uint32]bool)
	for {
		b, err := s.Recv()
		if err != nil {
			return fmt.Errorf("receiving from the host: %w", err)
		}
		f, err := Parse(b)
		if err == nil {
			err = e.dispatch(f)
		}
		if err != nil && e.cfg.Warn != nil && !warned[f.Channel] && len(warned) < 64 {
			warned[f.Channel] = true
			e.cfg.Warn(f.Channel, err)
		}
	}
}

func (e *Endpoint) dispatch(f Frame) error {
	e.mu.Lock()
	p := e.procs[f.Channel]
	if p == nil {
		e.mu.Unlock()
		return nil // not opened yet, or finished: SYNC makes up for it
	}
	after, err := p.handle(f)
	e.mu.Unlock()
	if after != nil {
		after()
	}
	return err
}

func (e *Endpoint) forget(p *Process) {
	if !p.forgotten {
		p.forgotten = true
		delete(e.procs, p.channel)
		close(p.done)
	}
}
