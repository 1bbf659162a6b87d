// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Protocol numbers are IP's.
type Protocol uint8

const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Target is what a flow leads to.
type Target struct {
	Protocol Protocol
	Address  netip.AddrPort
}

func (t Target) String() string { return t.Protocol.String() + " " + t.Address.String() }

type frameType uint8

const (
	typeOpen   frameType = 1
	typeData   frameType = 2
	typeEOF    frameType = 3
	typeCredit frameType = 4
	typeReset  frameType = 5
)

const headerSize = 8

func putHeader(b []byte, kind frameType, flow uint32) {
	clear(b[:4])
	b[0] = byte(kind)
	binary.LittleEndian.PutUint32(b[4:], flow)
}

func simple(kind frameType, flow uint32) []byte {
	b := make([]byte, headerSize)
	putHeader(b, kind, flow)
	return b
}

func creditFrame(flow uint32, n int) []byte {
	return binary.LittleEndian.AppendUint32(simple(typeCredit, flow), uint32(n))
}

func openFrame(flow uint32, t Target) []byte {
	b := simple(typeOpen, flow)
	b[1] = byte(t.Protocol)
	binary.LittleEndian.PutUint16(b[2:], t.Address.Port())
	a := t.Address.Addr().As16()
	return append(b, a[:]...)
}

// frame is a decoded one; payload is part of the message.
type frame struct {
	kind    frameType
	flow    uint32
	target  Target // of OPEN
	credit  int    // of CREDIT
	payload []byte // of DATA
}

func parse(b []byte) (frame, error) {
	if len(b) < headerSize {
		return frame{}, fmt.Errorf("%w: a frame of %d bytes", ErrViolation, len(b))
	}
	f := frame{kind: frameType(b[0]), flow: binary.LittleEndian.Uint32(b[4:])}
	rest := b[headerSize:]
	want := 0
	switch f.kind {
	case typeOpen:
		want = 16
	case typeCredit:
		want = 4
	case typeData:
		want = len(rest)
	case typeEOF, typeReset:
	default:
		return frame{}, fmt.Errorf("%w: frame type %d", ErrViolation, f.kind)
	}
	if len(rest) != want || len(rest) > MaxDatagram {
		return frame{}, fmt.Errorf("%w: a frame of type %d with %d bytes", ErrViolation, f.kind, len(rest))
	}
	switch f.kind {
	case typeOpen:
		f.target = Target{Protocol(b[1]), netip.AddrPortFrom(netip.AddrFrom16([16]byte(rest)).Unmap(), binary.LittleEndian.Uint16(b[2:]))}
		if f.target.Protocol != TCP && f.target.Protocol != UDP {
			return frame{}, fmt.Errorf("%w: it opens %v", ErrViolation, f.target.Protocol)
		}
	case typeCredit:
		n := binary.LittleEndian.Uint32(rest)
		if n == 0 || n > Window {
			return frame{}, fmt.Errorf("%w: a credit of %d bytes", ErrViolation, n)
		}
		f.credit = int(n)
	case typeData:
		f.payload = rest
	}
	return f, nil
}
