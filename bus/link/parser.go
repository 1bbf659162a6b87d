// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
)

// event is a frame the guest's parser has found.
type event struct {
	kind    byte
	nonce   uint64
	payload []byte // valid until the parser is used again
}

// parser finds frames in a stream that may begin, break off and begin anew at
// any byte. It looks again at every byte of a frame that proved to be none, so
// a HELLO is never swallowed by the remains of what stood before it.
type parser struct {
	buf   []byte
	r, w  int
	zeros int // length of the run of zero bytes that ends at r
}

func newParser() *parser { return &parser{buf: make([]byte, 2*MaxFrame)} }

// room returns where to read more bytes to. It is never empty after next has
// reported that it needs more.
func (p *parser) room() []byte {
	if p.r == p.w {
		p.r, p.w = 0, 0
	} else if len(p.buf)-p.w < MaxFrame/2 {
		p.w = copy(p.buf, p.buf[p.r:p.w])
		p.r = 0
	}
	return p.buf[p.w:]
}

// leaveBuffer goes on in a new buffer and leaves the old one to whoever holds a
// payload in it.
func (p *parser) leaveBuffer() {
	fresh := make([]byte, len(p.buf))
	p.w = copy(fresh, p.buf[p.r:p.w])
	p.buf, p.r = fresh, 0
}

func (p *parser) filled(n int) { p.w += n }

// next returns the next frame for a guest whose session has the given nonce.
// ok is false when more bytes are needed.
func (p *parser) next(session uint64, alive bool) (ev event, ok bool) {
	for {
		p.skipZeros()
		b := p.buf[p.r:p.w]
		if len(b) == 0 {
			return event{}, false
		}
		if b[0] != magic[0] {
			p.skipGarbage()
			continue
		}
		if head := min(len(b), len(magic)); !bytes.Equal(b[:head], magic[:head]) {
			p.reject()
			continue
		}
		if len(b) < headerSize {
			return event{}, false
		}
		h, err := parseHeader(b)
		if err != nil || !p.expected(h, session, alive) {
			p.reject()
			continue
		}
		if len(b) < h.size() {
			return event{}, false
		}
		if !trailerFits(b, h) {
			p.reject()
			continue
		}
		p.r += h.size()
		p.zeros = 0
		return event{kind: h.kind, nonce: h.nonce, payload: b[headerSize : headerSize+h.length]}, true
	}
}

// expected says whether a header may stand here.
func (p *parser) expected(h header, session uint64, alive bool) bool {
	switch h.kind {
	case typeHello:
		return p.zeros >= quiet
	case typeMessage, typeClose:
		return alive && h.nonce == session
	default:
		return false
	}
}

func (p *parser) reject() {
	p.r++
	p.zeros = 0
}

func (p *parser) skipZeros() {
	b := p.buf[p.r:p.w]
	n := 0
	for len(b)-n >= 8 && binary.LittleEndian.Uint64(b[n:]) == 0 {
		n += 8
	}
	for n < len(b) && b[n] == 0 {
		n++
	}
	p.r += n
	p.zeros = min(p.zeros+n, quiet)
}

// skipGarbage drops bytes that neither are zero nor begin a frame.
func (p *parser) skipGarbage() {
	b := p.buf[p.r:p.w]
	n := len(b)
	if i := bytes.IndexByte(b, magic[0]); i >= 0 {
		n = i
	}
	if i := bytes.IndexByte(b[:n], 0); i >= 0 {
		n = i
	}
	p.r += n
	p.zeros = 0
}
