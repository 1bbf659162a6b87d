// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import "errors"

var errType = errors.New("stdio: frame type not for this end")

// handle takes one frame from the host. Callers hold e.mu; after, if not nil,
// is to be called without it.
func (p *Process) handle(f Frame) (after func(), err error) {
	switch f.Type {
	case TypeData, TypeEOF:
		return nil, p.takeInput(f)
	case TypeAck, TypeResume:
		return p.window(f)
	case TypeSync:
		p.restate()
		p.sigAckPending = p.signals > 0
	case TypeExitAck:
		if !p.exitReady {
			return nil, errType
		}
		p.exitAcked = true
		p.e.forget(p)
	case TypeSignal:
		after = p.signal(f)
	case TypeWinsize:
		if p.term && !p.hungUp {
			rows, cols := f.Winsize()
			term := p.streams.Terminal
			after = func() { _ = resize(term, rows, cols) }
		}
	case TypeHangup:
		after = p.hangup()
	case TypeGone:
		for i := range p.out {
			p.out[i].close()
		}
		p.in.Close()
		p.room.Broadcast()
		p.fed.Broadcast()
		after = p.hangup()
	default:
		return nil, errType
	}
	p.e.markReady(p)
	return after, nil
}

func (p *Process) takeInput(f Frame) error {
	if f.Stream != Stdin {
		return errType
	}
	var resume bool
	var err error
	if f.Type == TypeData {
		resume, err = p.in.Data(f.Off, f.Payload)
	} else {
		resume, err = p.in.EOF(f.Off)
	}
	if err != nil {
		return err
	}
	if p.in.Closed() {
		p.ackPending = true
	}
	if resume {
		p.resumePending = true
	}
	if p.ackPending || p.resumePending {
		p.e.markReady(p)
	}
	p.fed.Signal()
	return nil
}

func (p *Process) window(f Frame) (after func(), err error) {
	if f.Stream != Stdout && f.Stream != Stderr {
		return nil, errType
	}
	i := int(f.Stream - Stdout)
	s := &p.out[i]
	was := s.Closed()
	if f.Type == TypeAck {
		err = s.Ack(f.Off, f.Limit(), f.Flags)
	} else {
		err = s.Resume(f.Off, f.Limit(), f.Flags)
	}
	p.room.Broadcast()
	p.e.markReady(p)
	if file := p.output(i); s.Closed() && !was && !p.term && !p.exited && file != nil {
		// The reader on the host is gone: the process shall see EPIPE.
		after = func() { file.Close() }
	}
	return after, err
}

func (p *Process) signal(f Frame) func() {
	if f.Off != p.signals+1 {
		p.sigAckPending = p.signals > 0 // a repetition, or one is missing: SYNC repeats it
		return nil
	}
	p.signals++
	p.sigAckPending = true
	if p.streams.Signal == nil || p.exited {
		return nil
	}
	n, deliver := f.Signal(), p.streams.Signal
	return func() { deliver(n) }
}

func (p *Process) hangup() func() {
	if p.hungUp || !p.term {
		return nil
	}
	p.hungUp = true
	term, tell := p.streams.Terminal, p.streams.Hangup
	return func() {
		term.Close() // the kernel sends SIGHUP to the session
		if tell != nil {
			tell()
		}
	}
}

// restate makes everything due that SYNC asks for.
func (p *Process) restate() {
	p.ackPending, p.resumePending = true, true
	p.exitPending = p.exitReady
}

// appendNext appends the most urgent frame, none if nothing is due. Callers hold e.mu.
func (p *Process) appendNext(b []byte) []byte {
	switch {
	case p.syncPending:
		p.syncPending = false
		return AppendSimple(b, TypeSync, 0, p.channel, 0)
	case p.sigAckPending:
		p.sigAckPending = false
		return AppendSimple(b, TypeSignalAck, 0, p.channel, p.signals)
	case p.ackPending:
		p.ackPending = false
		return p.in.AppendAck(b, Stdin, p.channel)
	case p.resumePending:
		p.resumePending = false
		return p.in.AppendResume(b, Stdin, p.channel)
	}
	p.turn = 1 - p.turn
	for _, i := range [2]int{p.turn, 1 - p.turn} {
		if p.out[i].Ready() {
			return p.out[i].AppendNext(b, uint8(Stdout+i), p.channel)
		}
	}
	if p.exitPending {
		p.exitPending = false
		return AppendExit(b, p.exitFlags, p.channel, p.code, p.out[0].Offset(), p.out[1].Offset())
	}
	return b
}
