// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package loopback carries TCP connections and UDP flows between a guest and the
// loopback addresses of its network namespace, over one session of the guest link
// (bus/link): the wire format, and the end that both sides have (Mux).
//
// The guest opens flows and the host dials. Each message of the session is a frame:
//
//	type u8 | protocol u8 | port u16 | flow u32 | payload
//
// little endian. OPEN names the protocol and where to (16 bytes of address as
// payload, IPv4 mapped into IPv6); the guest may send on the flow at once. DATA
// carries bytes of a TCP stream, or one datagram. EOF ends one direction of a
// stream. CREDIT grants the other side as many more bytes of a stream (u32); each
// begins with Window. RESET ends the flow: a connection that was refused or broken,
// or a UDP flow that nobody uses any more. What is sent on a flow that has ended is
// dropped without a word, as it may cross the word of the end.
//
// It has no NATS in it and imports only the standard library. The invariant to
// remember: reading from the session never waits for a flow, so one that stands
// still holds up no other, and what a flow may hold in memory is bounded.
package loopback

import "errors"

// ErrViolation says that the other side broke the rules of the protocol.
var ErrViolation = errors.New("loopback: the guest broke the protocol")

// ErrEnded says that the session has ended.
var ErrEnded = errors.New("loopback: the session with the other side has ended")

// ErrFull says that no more flows are carried.
var ErrFull = errors.New("loopback: too many connections")

const (
	// Window is how much of a stream is on its way or waits to be written.
	Window = 64 << 10
	// MaxDatagram is the largest that is carried; larger ones are dropped.
	MaxDatagram = 32<<10 - 64
	// datagrams are what waits of a UDP flow; more are dropped, as a socket does.
	datagrams = 32
	// chunk is the most of a stream in one frame: small enough that a query beside
	// a transfer need not wait for long.
	chunk = 16 << 10
)
