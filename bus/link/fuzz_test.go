// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// FuzzParser checks that the guest's parser, fed anything in any pieces, stays
// in bounds and then still finds a session.
func FuzzParser(f *testing.F) {
	var frame [MaxFrame]byte
	n := putFrame(frame[:], typeMessage, 1, []byte("payload"))
	f.Add(frame[:n], 3)
	f.Add(append(frame[:n-9:n-9], frame[:n]...), 1)
	f.Add([]byte("BHL1BHL1\x00\x00"), 100)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		p := newParser()
		feed := func(b []byte) (last event, found bool) {
			for len(b) > 0 {
				k := copy(p.room(), b[:min(len(b), max(1, step&0xffff))])
				if k == 0 {
					t.Fatal("the parser has no room")
				}
				p.filled(k)
				b = b[k:]
				for {
					ev, ok := p.next(1, true)
					if !ok {
						break
					}
					if len(ev.payload) > MaxMessage {
						t.Fatalf("payload of %d bytes", len(ev.payload))
					}
					last, found = ev, true
				}
			}
			return last, found
		}
		feed(data)
		hello := make([]byte, padding+headerSize+trailerSize)
		putFrame(hello[padding:], typeHello, 42, nil)
		if step&0xffff < 64 {
			step = 4096
		}
		if ev, ok := feed(hello); !ok || ev.kind != typeHello || ev.nonce != 42 {
			t.Fatalf("the session after %d bytes was not found", len(data))
		}
	})
}

// FuzzHost checks that nothing a guest sends makes the host panic or buffer more than a frame.
func FuzzHost(f *testing.F) {
	var frame [MaxFrame]byte
	n := putFrame(frame[:], typeMessage, 7, []byte("payload"))
	f.Add(frame[:n])
	f.Fuzz(func(t *testing.T, data []byte) {
		h := &hostEnd{conn: readerConn{Reader: bytes.NewReader(data)}, buf: make([]byte, MaxFrame)}
		s := newSession(7, h)
		for {
			m, err := s.Recv()
			if err != nil {
				break
			}
			if len(m) > MaxMessage {
				t.Fatalf("message of %d bytes", len(m))
			}
		}
		if len(h.buf) != MaxFrame {
			t.Fatal("the buffer grew")
		}
	})
}

type readerConn struct {
	net.Conn
	io.Reader
}

func (c readerConn) Read(b []byte) (int, error) { return c.Reader.Read(b) }
