// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
)

// handle takes one frame of the worker. What contradicts the protocol is
// dropped: the router has checked what the guest says, and a lost frame is
// made up for by the next SYNC. Callers hold r.mu.
func (r *relay) handle(f stdio.Frame) {
	i := int(f.Stream) - stdio.Stdout
	switch f.Type {
	case stdio.TypeData, stdio.TypeEOF:
		if i < 0 {
			return
		}
		o := &r.out[i]
		var resume bool
		var err error
		if f.Type == stdio.TypeData {
			resume, err = o.Data(f.Off, f.Payload)
		} else {
			resume, err = o.EOF(f.Off)
		}
		if resume || err != nil {
			r.resumePending[i] = r.resumePending[i] || resume
			r.sendable.Signal()
		}
		if o.Closed() {
			r.ackPending[i] = true
			r.sendable.Signal()
		}
		r.outData[i].Signal()
	case stdio.TypeAck, stdio.TypeResume:
		if f.Stream != stdio.Stdin {
			return
		}
		if f.Type == stdio.TypeAck {
			_ = r.in.Ack(f.Off, f.Limit(), f.Flags)
		} else {
			_ = r.in.Resume(f.Off, f.Limit(), f.Flags)
		}
		if r.in.Closed() {
			r.wake(r.wakeIn)
		}
		r.inRoom.Signal()
		r.sendable.Signal()
	case stdio.TypeSync:
		r.restate()
		r.sendable.Signal()
	case stdio.TypeExit:
		if r.exit == nil {
			r.exit = &stdio.Frame{Header: f.Header}
			r.exitCode = f.Code()
			r.exitEnds = [2]uint64{f.End(stdio.Stdout), f.End(stdio.Stderr)}
		}
	case stdio.TypeSignalAck:
		r.signals.acknowledge(f.Off)
	case stdio.TypeSignal:
		r.signals.add(f.Signal())
		r.sendable.Signal()
	case stdio.TypeGone:
		r.gone, r.goneCode = true, f.Code()&0xff
	}
}

// restate makes everything due that a new listener must know. Callers hold r.mu.
func (r *relay) restate() {
	r.ackPending = [2]bool{true, true}
	r.resumePending = [2]bool{true, true}
	r.signals.rewind()
	r.winsizePending = r.setup.Terminal && !r.hungUp
	r.hangupPending = r.hungUp
}

// sendLoop sends what is due to whichever worker is connected.
func (r *relay) sendLoop() {
	var buf []byte // as large as the largest frame so far
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var frame []byte
		if r.conn >= 0 && !r.lost && !r.exitAckSent {
			frame = r.appendNext(buf[:0])
			buf = frame
		}
		if len(frame) == 0 {
			r.sendable.Wait()
			continue
		}
		conn := r.conn
		r.sending = true
		r.mu.Unlock()
		err := transmit(conn, frame)
		r.mu.Lock()
		r.sending = false
		if err != nil {
			r.lost = true // the main loop reads what is left, and then the end
		}
		r.unsent.Broadcast()
	}
}

// appendNext appends the most urgent frame, none if nothing is due. Callers hold r.mu.
func (r *relay) appendNext(b []byte) []byte {
	if r.helloPending {
		r.helloPending = false
		return stdio.AppendHello(b, unix.Getpid())
	}
	for i := range r.out {
		stream := uint8(stdio.Stdout + i)
		if r.ackPending[i] {
			r.ackPending[i] = false
			return r.out[i].AppendAck(b, stream, 0)
		}
		if r.resumePending[i] {
			r.resumePending[i] = false
			return r.out[i].AppendResume(b, stream, 0)
		}
	}
	if r.winsizePending {
		r.winsizePending = false
		if ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil && ws.Row|ws.Col != 0 {
			return stdio.AppendWinsize(b, 0, ws.Row, ws.Col)
		}
	}
	if seq, n, ok := r.signals.next(); ok {
		return stdio.AppendSignal(b, 0, seq, n)
	}
	if r.hangupPending {
		r.hangupPending = false
		return stdio.AppendSimple(b, stdio.TypeHangup, 0, 0, 0)
	}
	return r.in.AppendNext(b, stdio.Stdin, 0)
}
