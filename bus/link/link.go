// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package link carries message sessions over a byte stream that has no
// connection boundary, such as a virtio-serial port: neither side learns from
// the stream itself that the other one restarted, and what an earlier session
// left half-written is still in the pipe.
//
// The host opens a session: it sends zero bytes, then HELLO with a random
// nonce, and discards what it reads until HELLO_ACK with that nonce. From then
// on each message is
//
//	magic "BHL1" | type u32 | length u32 | check u32 | nonce u64 | payload | ^nonce u64
//
// little endian, written at once and at most MaxFrame long. There is no
// checksum of the payload: the stream does not corrupt, it only truncates, and
// a truncated frame shows by the nonce missing at its end. The guest then
// looks for the next HELLO, which it accepts only after a run of zero bytes
// longer than any payload; a payload that imitates a HELLO is not one. A new
// HELLO ends the guest's earlier session with ErrReset.
//
// The host trusts nothing it reads: its buffers have a fixed size, and any
// deviation after HELLO_ACK ends the session with ErrProtocol.
//
// The package imports only the standard library and x/sys. The invariant:
// a session delivers a gapless prefix of the messages the other side sent in
// that same session, and nothing else.
package link

import "errors"

var (
	// ErrReset ends a guest's session: the host has opened a new one.
	ErrReset = errors.New("link: the host opened a new session")
	// ErrClosed is returned on a session, listener or port closed on this side.
	ErrClosed = errors.New("link: closed")
	// ErrProtocol ends a host's session: the guest sent something that is no frame of it.
	ErrProtocol = errors.New("link: protocol violation by the guest")
	// ErrTorn ends a session in which a frame could be written only in part.
	ErrTorn = errors.New("link: frame written only in part; the session is over")
	// ErrTooLong refuses a message longer than MaxMessage.
	ErrTooLong = errors.New("link: message longer than the maximum")
)
