// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"bulkhead/bus/idle"
)

const (
	// helloInterval is how often an unanswered HELLO is repeated: a guest that
	// closes its port while booting loses what was in it.
	helloInterval = 2 * time.Second
	// maxLeftover bounds what Dial reads before HELLO_ACK. A full transmit
	// queue of an earlier session holds 128 buffers of 32 KiB.
	maxLeftover = 16 << 20
)

// Dial opens a session as the host. It owns conn: an error closes it. It waits
// for the guest until ctx ends.
func Dial(ctx context.Context, conn net.Conn) (*Session, error) {
	var random [8]byte
	rand.Read(random[:])
	h := &hostEnd{conn: conn}
	h.take()
	s := newSession(binary.LittleEndian.Uint64(random[:]), h)
	if err := h.handshake(ctx, s.nonce); err != nil {
		conn.Close()
		return nil, fmt.Errorf("opening a session with the guest: %w", err)
	}
	return s, nil
}

// hostEnd is the host's half: frames straight on a connection.
type hostEnd struct {
	conn net.Conn
	buf  []byte // received bytes are buf[r:w]; nil while there are none and the guest is silent
	r, w int
	skip int // size of the frame Recv returned last

	sendMu sync.Mutex // one frame at a time on conn
}

func (h *hostEnd) handshake(ctx context.Context, nonce uint64) error {
	// A context that ends interrupts the reads and writes in progress.
	stop := context.AfterFunc(ctx, func() { h.conn.SetDeadline(time.Unix(1, 0)) })
	helloCtx, stopHello := context.WithCancel(ctx)
	helloDone := make(chan error, 1)
	go func() { helloDone <- h.sendHellos(helloCtx, nonce) }()

	err := h.awaitAck(nonce)
	stopHello()
	if err != nil {
		h.conn.SetWriteDeadline(time.Unix(1, 0))
	}
	if helloErr := <-helloDone; err == nil {
		err = helloErr
	}
	if !stop() {
		return ctx.Err()
	}
	return err
}

func (h *hostEnd) sendHellos(ctx context.Context, nonce uint64) error {
	hello := make([]byte, padding+headerSize+trailerSize)
	putFrame(hello[padding:], typeHello, nonce, nil)
	tick := time.NewTicker(helloInterval)
	defer tick.Stop()
	for {
		if _, err := h.conn.Write(hello); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// awaitAck discards input up to and including HELLO_ACK(nonce).
func (h *hostEnd) awaitAck(nonce uint64) error {
	ack := make([]byte, headerSize+trailerSize)
	putFrame(ack, typeAck, nonce, nil)
	for dropped := 0; dropped < maxLeftover; {
		n, err := h.conn.Read(h.buf[h.w:])
		h.w += n
		if i := bytes.Index(h.buf[:h.w], ack); i >= 0 {
			h.r = i + len(ack)
			return nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if keep := len(ack) - 1; h.w > keep {
			dropped += h.w - keep
			copy(h.buf, h.buf[h.w-keep:h.w])
			h.w = keep
		}
	}
	return fmt.Errorf("%w: %d bytes and no answer to HELLO", ErrProtocol, maxLeftover)
}

func (h *hostEnd) recv(s *Session) ([]byte, error) {
	if err := s.Err(); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, err
	}
	h.r += h.skip
	h.skip = 0
	for {
		head, whole, err := h.next(s.nonce)
		if err != nil {
			s.finish(err)
			return nil, err
		}
		if !whole {
			if err := h.fill(); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					return nil, err // nothing is lost: what was read stays buffered
				}
				if s.finish(err) {
					return nil, err
				}
				return nil, s.Err()
			}
			continue
		}
		switch head.kind {
		case typeMessage:
			h.skip = head.size()
			return h.buf[h.r+headerSize : h.r+headerSize+head.length], nil
		case typeAck: // the answer to a repeated HELLO
			h.r += head.size()
		case typeClose:
			s.finish(io.EOF)
			return nil, io.EOF
		default:
			err := fmt.Errorf("%w: frame type %d", ErrProtocol, head.kind)
			s.finish(err)
			return nil, err
		}
	}
}

// next looks at the head of the buffered bytes.
func (h *hostEnd) next(nonce uint64) (head header, whole bool, err error) {
	b := h.buf[h.r:h.w]
	if len(b) < headerSize {
		return header{}, false, nil
	}
	head, err = parseHeader(b)
	if err != nil || head.nonce != nonce {
		return header{}, false, fmt.Errorf("%w: bytes that begin no frame of this session", ErrProtocol)
	}
	if len(b) < head.size() {
		return head, false, nil
	}
	if !trailerFits(b, head) {
		return header{}, false, fmt.Errorf("%w: a frame of %d bytes is cut short", ErrProtocol, head.size())
	}
	return head, true, nil
}

func (h *hostEnd) fill() error {
	if h.r == h.w {
		h.r, h.w = 0, 0
	} else if h.r > 0 && h.w == len(h.buf) {
		h.w = copy(h.buf, h.buf[h.r:h.w])
		h.r = 0
	}
	n, err := idle.Read(h.conn, h.take, h.give)
	h.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// take returns where to read to. A host has two or three of these for each VM, and nearly all of
// them have nothing to do.
func (h *hostEnd) take() []byte {
	if h.buf == nil {
		h.buf = frames.Get().(*[MaxFrame]byte)[:]
	}
	return h.buf[h.w:]
}

// give lets go of a buffer in which nothing is.
func (h *hostEnd) give() {
	if h.w == 0 {
		frames.Put((*[MaxFrame]byte)(h.buf))
		h.buf = nil
	}
}

func (h *hostEnd) send(s *Session, frame []byte) error {
	h.sendMu.Lock()
	defer h.sendMu.Unlock()
	if err := s.Err(); err != nil {
		return err
	}
	n, err := h.conn.Write(frame)
	if err == nil {
		return nil
	}
	if n > 0 {
		s.finish(ErrTorn)
		h.conn.Close()
	}
	if ended := s.Err(); ended != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return ended
	}
	return err
}

func (h *hostEnd) setReadDeadline(t time.Time) error  { return h.conn.SetReadDeadline(t) }
func (h *hostEnd) setWriteDeadline(t time.Time) error { return h.conn.SetWriteDeadline(t) }
func (h *hostEnd) release(*Session) error             { return h.conn.Close() }
