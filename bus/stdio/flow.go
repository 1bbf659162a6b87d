// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import "errors"

var (
	// ErrWindow reports data beyond the window the receiver has granted.
	ErrWindow = errors.New("stdio: data beyond the granted window")
	// ErrOffset reports an offset that contradicts what was said before.
	ErrOffset = errors.New("stdio: contradictory offset")
)

// Sender is the sending half of one stream: a ring of unacknowledged bytes and
// a cursor of what has been sent. It does no I/O and no locking.
type Sender struct {
	ring    Ring
	next    uint64 // next byte to send
	limit   uint64 // absolute end of the window
	stalled bool   // wait for RESUME

	eof      bool // the stream ends at ring.End()
	eofSent  bool
	eofAcked bool
	closed   bool // the receiver wants no more
}

// NewSender makes a sender with a full first window.
func NewSender() Sender { return Sender{ring: NewRing(Window), limit: Window} }

// Space is how many bytes Write takes now.
func (s *Sender) Space() int { return s.ring.Space() }

// Write queues p, of which at most Space bytes fit, and returns how many it took.
// What the receiver does not want is dropped and counts as taken.
func (s *Sender) Write(p []byte) int {
	if s.closed {
		return len(p)
	}
	return s.ring.Write(p)
}

// widen lets Write queue more than a window, up to size bytes in all, a power of
// two. What may be sent is still the window's to say.
func (s *Sender) widen(size int) { s.ring.max = max(s.ring.max, size) }

// End marks the end of the stream after what was written.
func (s *Sender) End() { s.eof = true }

// Offset is the offset after the last byte written.
func (s *Sender) Offset() uint64 { return s.ring.End() }

// Closed says whether the receiver wants no more.
func (s *Sender) Closed() bool { return s.closed }

// Stall makes the sender wait for RESUME: what it sent may have been lost.
func (s *Sender) Stall() { s.stalled = true }

// Ready says whether AppendNext would append a frame.
func (s *Sender) Ready() bool {
	if s.stalled || s.closed {
		return false
	}
	return s.next < min(s.ring.End(), s.limit) || (s.eof && !s.eofSent && s.next == s.ring.End())
}

// AppendNext appends the next DATA or EOF frame to b if Ready.
func (s *Sender) AppendNext(b []byte, stream uint8, channel uint32) []byte {
	if !s.Ready() {
		return b
	}
	n := int(min(s.ring.End(), s.limit) - s.next)
	if n == 0 {
		s.eofSent = true
		return AppendSimple(b, TypeEOF, stream, channel, s.next)
	}
	n = min(n, MaxData)
	b = Header{Type: TypeData, Stream: stream, Channel: channel, Off: s.next, Len: uint32(n)}.append(b)
	for n > 0 {
		part := s.ring.At(s.next)
		part = part[:min(n, len(part))]
		b = append(b, part...)
		s.next += uint64(len(part))
		n -= len(part)
	}
	return b
}

// Ack takes an ACK. It may be ahead of the cursor, which RESUME can have moved
// back meanwhile; an offset never written is a violation by the peer.
func (s *Sender) Ack(off, limit uint64, flags uint16) error {
	if s.closed {
		return nil
	}
	if off > s.ring.End() {
		return ErrOffset
	}
	s.ring.Free(off)
	s.next = max(s.next, off)
	s.limit = max(s.limit, limit)
	if flags&FlagEOF != 0 && s.eof && off == s.ring.End() {
		s.eofAcked = true
	}
	if flags&FlagClosed != 0 {
		s.close()
	}
	return nil
}

// Resume takes a RESUME: sending goes on from off.
func (s *Sender) Resume(off, limit uint64, flags uint16) error {
	if s.closed {
		return nil
	}
	if off < s.ring.Base() || off > s.ring.End() {
		// An old word, overtaken by an ACK, or a peer that is wrong: either way
		// sending from the first byte held loses nothing.
		if off > s.ring.End() {
			return ErrOffset
		}
		off = s.ring.Base()
	}
	s.next = off
	s.limit = max(s.limit, limit)
	s.stalled = false
	if flags&FlagEOF == 0 && !s.eofAcked {
		s.eofSent = false
	}
	return nil
}

// Release gives the memory of a sender at rest back.
func (s *Sender) Release() { s.ring.Release() }

func (s *Sender) close() {
	s.closed = true
	s.next = s.ring.End()
	s.ring.Free(s.ring.End())
}

// Receiver is the receiving half of one stream: the bytes received and not yet
// written onward. It does no I/O and no locking.
type Receiver struct {
	ring      Ring
	acked     uint64 // last offset acknowledged
	gap       uint64 // offset+1 for which RESUME was already sent
	end       uint64 // end of the stream, if eof
	eof       bool
	eofPassed bool
	closed    bool // nobody reads: received bytes are dropped
}

// NewReceiver makes a receiver with an empty first window.
func NewReceiver() Receiver { return Receiver{ring: NewRing(Window)} }

// Data takes DATA. resume says that bytes before it are missing and the sender must be told.
func (r *Receiver) Data(off uint64, p []byte) (resume bool, err error) {
	want := r.ring.End()
	if off+uint64(len(p)) > r.limit() || (r.eof && off+uint64(len(p)) > r.end) {
		return false, ErrWindow
	}
	if off > want {
		if r.gap == want+1 {
			return false, nil
		}
		r.gap = want + 1
		return true, nil
	}
	if skip := want - off; skip < uint64(len(p)) {
		r.ring.Write(p[skip:])
		r.gap = 0
		if r.closed {
			r.ring.Free(r.ring.End())
		}
	}
	return false, nil
}

// EOF takes EOF.
func (r *Receiver) EOF(off uint64) (resume bool, err error) {
	want := r.ring.End()
	if (r.eof && off != r.end) || off < want {
		return false, ErrOffset
	}
	if off > want {
		if r.gap == want+1 {
			return false, nil
		}
		r.gap = want + 1
		return true, nil
	}
	r.eof, r.end = true, off
	return false, nil
}

// Next copies the next bytes to write onward into p and returns how many.
func (r *Receiver) Next(p []byte) int { return r.ring.CopyAt(p, r.ring.Base()) }

// Peek returns the next bytes to write onward, at most n, without a copy. What
// Data takes meanwhile does not touch them; Done and Close end their validity.
func (r *Receiver) Peek(n int) []byte {
	b := r.ring.At(r.ring.Base())
	return b[:min(n, len(b))]
}

// Pending is how many bytes wait to be written onward.
func (r *Receiver) Pending() int { return r.ring.Len() }

// Ended says that everything up to the end of the stream has been taken by Done.
func (r *Receiver) Ended() bool { return r.eof && r.ring.Base() == r.end }

// Done says that n bytes have been written onward. ack says that it is time to acknowledge.
func (r *Receiver) Done(n int) (ack bool) {
	r.ring.Free(r.ring.Base() + uint64(n))
	behind := r.ring.Base() - r.acked
	return behind >= Window/4 || (r.ring.Len() == 0 && behind >= ringMin)
}

// Written is the offset before which everything has been written onward.
func (r *Receiver) Written() uint64 { return r.ring.Base() }

// PassedEOF says that the end has been passed on.
func (r *Receiver) PassedEOF() { r.eofPassed = true }

// Close says that nobody will read any more. What comes is dropped.
func (r *Receiver) Close() {
	r.closed = true
	r.ring.Free(r.ring.End())
}

// Closed says whether Close was called.
func (r *Receiver) Closed() bool { return r.closed }

// Release gives the memory of a receiver at rest back.
func (r *Receiver) Release() { r.ring.Release() }

func (r *Receiver) limit() uint64 { return r.ring.Base() + Window }

// AppendAck appends ACK.
func (r *Receiver) AppendAck(b []byte, stream uint8, channel uint32) []byte {
	var flags uint16
	if r.eofPassed {
		flags |= FlagEOF
	}
	if r.closed {
		flags |= FlagClosed
	}
	r.acked = r.ring.Base()
	return AppendWindow(b, TypeAck, stream, flags, channel, r.acked, r.limit())
}

// AppendResume appends RESUME.
func (r *Receiver) AppendResume(b []byte, stream uint8, channel uint32) []byte {
	var flags uint16
	if r.eof {
		flags |= FlagEOF
	}
	return AppendWindow(b, TypeResume, stream, flags, channel, r.ring.End(), r.limit())
}
