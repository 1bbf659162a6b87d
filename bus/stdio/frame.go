// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"encoding/binary"
	"errors"
)

// Type says what a frame is. The zero value is no frame.
type Type uint8

// The frame types; the package comment says what each carries and means.
const (
	TypeData Type = 1 + iota
	TypeEOF
	TypeAck
	TypeResume
	TypeSync
	TypeExit
	TypeExitAck
	TypeSignal
	TypeSignalAck
	TypeWinsize
	TypeHangup
	TypeGone
	TypeHello
	TypeAttach
	typeEnd
)

// Stream numbers.
const (
	Stdin  = 0
	Stdout = 1
	Stderr = 2
)

// Flags of ACK and RESUME.
const (
	// FlagEOF: the end of the stream has been passed on (ACK) or received (RESUME).
	FlagEOF = 1 << 0
	// FlagClosed: the receiver wants no more of this stream; its reader is gone.
	FlagClosed = 1 << 1
	// FlagOOM: the process of an EXIT was killed by its kernel for want of memory.
	FlagOOM = 1 << 2
)

const (
	// HeaderSize is the encoded size of a Header.
	HeaderSize = 20
	// MaxData is the largest payload of a DATA frame: seven pages, which with
	// both headers fits one frame of bus/link.
	MaxData = 28 << 10
	// MaxFrame is the largest frame.
	MaxFrame = HeaderSize + MaxData
	// MaxReason bounds the text of GONE.
	MaxReason = 1024
	// Window is how far a sender may be ahead of what the receiver has written
	// onward, and what it may send before the receiver's first word. An
	// acknowledgement takes milliseconds to an emulated guest: with half of this a
	// stream waits for it (docs/performance.md, "Standard output path").
	Window = 512 << 10
)

// Header is the fixed head of each frame.
type Header struct {
	Type    Type
	Stream  uint8
	Flags   uint16
	Channel uint32
	Off     uint64
	Len     uint32
}

// Frame is a decoded frame.
type Frame struct {
	Header
	Payload []byte // aliases what was decoded
}

// ErrFrame reports bytes that are no valid frame.
var ErrFrame = errors.New("stdio: invalid frame")

// Put encodes h into b, which holds at least HeaderSize bytes.
func (h Header) Put(b []byte) {
	b[0], b[1] = byte(h.Type), h.Stream
	binary.LittleEndian.PutUint16(b[2:], h.Flags)
	binary.LittleEndian.PutUint32(b[4:], h.Channel)
	binary.LittleEndian.PutUint64(b[8:], h.Off)
	binary.LittleEndian.PutUint32(b[16:], h.Len)
}

// SetChannel rewrites the channel of an encoded frame.
func SetChannel(frame []byte, channel uint32) {
	binary.LittleEndian.PutUint32(frame[4:], channel)
}

// payloadSize is the exact payload of each type; -1 is checked by hand.
var payloadSize = [typeEnd]int{
	TypeData: -1, TypeAck: 8, TypeResume: 8, TypeExit: 20, TypeSignal: 4,
	TypeWinsize: 4, TypeGone: -1, TypeHello: 4,
}

// Parse decodes one whole frame and checks everything that can be checked
// without knowing the channel's state.
func Parse(b []byte) (Frame, error) {
	if len(b) < HeaderSize {
		return Frame{}, ErrFrame
	}
	f := Frame{Header: Header{
		Type: Type(b[0]), Stream: b[1],
		Flags:   binary.LittleEndian.Uint16(b[2:]),
		Channel: binary.LittleEndian.Uint32(b[4:]),
		Off:     binary.LittleEndian.Uint64(b[8:]),
		Len:     binary.LittleEndian.Uint32(b[16:]),
	}, Payload: b[HeaderSize:]}
	n := len(f.Payload)
	if f.Type == 0 || f.Type >= typeEnd || f.Stream > Stderr || int(f.Len) != n || f.Off > maxOffset {
		return Frame{}, ErrFrame
	}
	switch f.Type {
	case TypeData:
		if n == 0 || n > MaxData {
			return Frame{}, ErrFrame
		}
	case TypeGone:
		if n < 4 || n > 4+MaxReason {
			return Frame{}, ErrFrame
		}
	default:
		if n != payloadSize[f.Type] {
			return Frame{}, ErrFrame
		}
	}
	switch f.Type {
	case TypeAck, TypeResume:
		if f.Limit() > maxOffset || f.Limit() < f.Off {
			return Frame{}, ErrFrame
		}
	case TypeExit:
		if f.Code() > 255 || f.End(Stdout) > maxOffset || f.End(Stderr) > maxOffset {
			return Frame{}, ErrFrame
		}
	case TypeSignal:
		if f.Signal() < 1 || f.Signal() > 64 {
			return Frame{}, ErrFrame
		}
	}
	return f, nil
}

// maxOffset keeps sums of an offset and a window from wrapping.
const maxOffset = 1 << 62

// Limit is the absolute end of the window, of ACK and RESUME.
func (f Frame) Limit() uint64 { return binary.LittleEndian.Uint64(f.Payload) }

// Code is the exit code of EXIT and GONE.
func (f Frame) Code() int { return int(binary.LittleEndian.Uint32(f.Payload)) }

// End is the end offset of an output stream, of EXIT.
func (f Frame) End(stream int) uint64 {
	return binary.LittleEndian.Uint64(f.Payload[4+8*(stream-Stdout):])
}

// Signal is the number SIGNAL carries.
func (f Frame) Signal() int { return int(binary.LittleEndian.Uint32(f.Payload)) }

// Winsize is the terminal size WINSIZE carries.
func (f Frame) Winsize() (rows, cols uint16) {
	return binary.LittleEndian.Uint16(f.Payload), binary.LittleEndian.Uint16(f.Payload[2:])
}

// PID is the sender's process id, of HELLO.
func (f Frame) PID() int { return int(binary.LittleEndian.Uint32(f.Payload)) }

// Reason is the text of GONE.
func (f Frame) Reason() string { return string(f.Payload[4:]) }

// AppendSimple appends a frame without payload: EOF, SYNC, EXIT_ACK,
// SIGNAL_ACK, HANGUP, ATTACH.
func AppendSimple(b []byte, t Type, stream uint8, channel uint32, off uint64) []byte {
	return Header{Type: t, Stream: stream, Channel: channel, Off: off}.append(b)
}

// AppendWindow appends ACK or RESUME.
func AppendWindow(b []byte, t Type, stream uint8, flags uint16, channel uint32, off, limit uint64) []byte {
	b = Header{Type: t, Stream: stream, Flags: flags, Channel: channel, Off: off, Len: 8}.append(b)
	return binary.LittleEndian.AppendUint64(b, limit)
}

// AppendExit appends EXIT; flags are 0 or FlagOOM.
func AppendExit(b []byte, flags uint16, channel uint32, code int, end1, end2 uint64) []byte {
	b = Header{Type: TypeExit, Flags: flags, Channel: channel, Len: 20}.append(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(code))
	b = binary.LittleEndian.AppendUint64(b, end1)
	return binary.LittleEndian.AppendUint64(b, end2)
}

// AppendSignal appends SIGNAL.
func AppendSignal(b []byte, channel uint32, seq uint64, n int) []byte {
	b = Header{Type: TypeSignal, Channel: channel, Off: seq, Len: 4}.append(b)
	return binary.LittleEndian.AppendUint32(b, uint32(n))
}

// AppendWinsize appends WINSIZE.
func AppendWinsize(b []byte, channel uint32, rows, cols uint16) []byte {
	b = Header{Type: TypeWinsize, Channel: channel, Len: 4}.append(b)
	b = binary.LittleEndian.AppendUint16(b, rows)
	return binary.LittleEndian.AppendUint16(b, cols)
}

// AppendHello appends HELLO.
func AppendHello(b []byte, pid int) []byte {
	b = Header{Type: TypeHello, Len: 4}.append(b)
	return binary.LittleEndian.AppendUint32(b, uint32(pid))
}

// AppendGone appends GONE; a reason longer than MaxReason is cut.
func AppendGone(b []byte, channel uint32, code int, reason string) []byte {
	reason = reason[:min(len(reason), MaxReason)]
	b = Header{Type: TypeGone, Channel: channel, Len: uint32(4 + len(reason))}.append(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(code))
	return append(b, reason...)
}

func (h Header) append(b []byte) []byte {
	var head [HeaderSize]byte
	h.Put(head[:])
	return append(b, head[:]...)
}
