// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"sync"
	"time"
)

// Session is one conversation over the stream. Send may be called from several
// goroutines; Recv from one at a time.
type Session struct {
	nonce uint64
	end   endpoint

	done     chan struct{} // closed by finish
	finishMu sync.Mutex    // guards err and the closing of done
	err      error
}

// endpoint is the side-specific half of a session.
type endpoint interface {
	// recv returns the next payload, valid until the next call.
	recv(s *Session) ([]byte, error)
	// send writes a whole frame.
	send(s *Session, frame []byte) error
	setReadDeadline(t time.Time) error
	setWriteDeadline(t time.Time) error
	// release gives up what the session holds after it has ended.
	release(s *Session) error
}

func newSession(nonce uint64, end endpoint) *Session {
	return &Session{nonce: nonce, end: end, done: make(chan struct{})}
}

// Send sends one message of at most MaxMessage bytes. It blocks while the
// stream is full; b may be reused when it returns.
func (s *Session) Send(b []byte) error {
	if len(b) > MaxMessage {
		return ErrTooLong
	}
	return s.write(typeMessage, b)
}

func (s *Session) write(kind byte, b []byte) error {
	if err := s.Err(); err != nil {
		return err
	}
	buf := frames.Get().(*[MaxFrame]byte)
	defer frames.Put(buf)
	n := putFrame(buf[:], kind, s.nonce, b)
	return s.end.send(s, buf[:n])
}

// Recv returns the next message. The slice is valid until the next call. After
// the other side's Close it returns io.EOF.
func (s *Session) Recv() ([]byte, error) { return s.end.recv(s) }

// Done is closed when the session has ended for whatever reason; Err tells which.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is nil while the session lives, else why it ended.
func (s *Session) Err() error {
	s.finishMu.Lock()
	defer s.finishMu.Unlock()
	return s.err
}

// closeGrace bounds how long Close tries to tell the other side.
const closeGrace = 200 * time.Millisecond

// Close ends the session and tells the other side if the stream takes the word
// within moments. On the host it closes the connection too; on the guest the
// port stays open for the next session.
func (s *Session) Close() error {
	if s.Err() == nil {
		_ = s.end.setWriteDeadline(time.Now().Add(closeGrace))
		_ = s.write(typeClose, nil)
	}
	if !s.finish(ErrClosed) && errors.Is(s.Err(), ErrClosed) {
		return nil
	}
	return s.end.release(s)
}

// finish ends the session with err unless it has ended; it reports whether this call did.
func (s *Session) finish(err error) bool {
	s.finishMu.Lock()
	defer s.finishMu.Unlock()
	if s.err != nil {
		return false
	}
	s.err = err
	close(s.done)
	return true
}
