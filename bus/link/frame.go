// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
)

const (
	// MaxFrame is the largest unit written at once. A write(2) to a
	// virtio-serial port carries at most 32 KiB (drivers/char/virtio_console.c,
	// port_fops_write), so a frame of this size is one kernel operation.
	MaxFrame = 32 << 10
	// MaxMessage is the largest payload of one message.
	MaxMessage = MaxFrame - headerSize - trailerSize

	headerSize  = 24
	trailerSize = 8
	// quiet is the run of zero bytes that must stand before a HELLO. It is
	// longer than any payload, so no payload can imitate the start of a session.
	quiet = MaxFrame
	// padding is what the host sends before a HELLO: the quiet run, and a whole
	// frame more to complete one that an earlier session left half-written.
	padding = quiet + MaxFrame
)

const (
	typeHello   = 1
	typeAck     = 2
	typeMessage = 3
	typeClose   = 4
)

var magic = [4]byte{'B', 'H', 'L', '1'}

// header is the decoded head of a frame.
type header struct {
	kind   byte
	length int
	nonce  uint64
}

var errHeader = errors.New("not a frame header")

// putFrame encodes a frame into dst, which has room for it, and returns its size.
func putFrame(dst []byte, kind byte, nonce uint64, payload []byte) int {
	copy(dst, magic[:])
	binary.LittleEndian.PutUint32(dst[4:], uint32(kind))
	binary.LittleEndian.PutUint32(dst[8:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(dst[12:], ^(uint32(len(payload)) ^ uint32(kind)<<24))
	binary.LittleEndian.PutUint64(dst[16:], nonce)
	n := headerSize + copy(dst[headerSize:], payload)
	binary.LittleEndian.PutUint64(dst[n:], ^nonce)
	return n + trailerSize
}

// parseHeader decodes the head of a frame from at least headerSize bytes.
func parseHeader(b []byte) (header, error) {
	kind := binary.LittleEndian.Uint32(b[4:])
	length := binary.LittleEndian.Uint32(b[8:])
	if !bytes.Equal(b[:4], magic[:]) || kind < typeHello || kind > typeClose || length > MaxMessage ||
		binary.LittleEndian.Uint32(b[12:]) != ^(length^kind<<24) || (kind != typeMessage && length != 0) {
		return header{}, errHeader
	}
	return header{kind: byte(kind), length: int(length), nonce: binary.LittleEndian.Uint64(b[16:])}, nil
}

// trailerFits says whether the trailer of the frame at the head of b names the
// same session as its header: the frame is whole.
func trailerFits(b []byte, h header) bool {
	return binary.LittleEndian.Uint64(b[headerSize+h.length:]) == ^h.nonce
}

func (h header) size() int { return headerSize + h.length + trailerSize }

// frames holds write buffers, so an idle session owns none.
var frames = sync.Pool{New: func() any { return new([MaxFrame]byte) }}
