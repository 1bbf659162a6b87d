// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package stdio is the wire format and the logic of a container process's
// standard streams between the agent in the guest and the relay on the host,
// and the agent's end of it. It imports no NATS and no protobuf: the relay
// links it and must stay tiny.
//
// # Frames
//
// A frame is a header of 20 bytes, little endian, and a payload:
//
//	type u8 | stream u8 | flags u16 | channel u32 | off u64 | len u32
//
// On the guest link each frame is one message of bus/link. Between the router
// and a relay each is one packet of a SOCK_SEQPACKET unix socket on which the
// relay listens; there the channel is not looked at: a relay has one.
// Streams are 0 (stdin), 1 (stdout; all output of a terminal) and 2 (stderr).
//
//	DATA        stream, off; payload: bytes [off, off+len)
//	EOF         stream, off: the stream ends at off
//	ACK         stream, off; payload: limit u64. Everything before off has been written
//	            onward; bytes before limit may be sent. FlagEOF: so has the end been.
//	            FlagClosed: the reader is gone, send no more
//	RESUME      like ACK in form: off is the next byte wanted; go on sending from there.
//	            It frees nothing. FlagEOF: the end is known too
//	SYNC        frames may have been lost; the answer restates what the sender of the answer
//	            knows: per stream it receives ACK and RESUME; unacknowledged signals and exit;
//	            terminal size; hang-up
//	EXIT        payload: code u32, end of stdout u64, end of stderr u64. FlagOOM: the guest's
//	            kernel killed it for want of memory
//	EXIT_ACK    the relay has written everything up to those ends
//	SIGNAL      off: sequence number from 1; payload: signal u32
//	SIGNAL_ACK  off: every signal up to this number has been delivered
//	WINSIZE     payload: rows u16, columns u16
//	HANGUP      the relay's terminal is gone
//	GONE        payload: code u32, reason. To the relay: the VM is dead. To the agent:
//	            the relay is dead, nobody will ever take this output
//	HELLO       first frame of a relay on a new connection; payload: its pid u32
//	ATTACH      first frame of the router on a new connection; carries a pidfd of the
//	            VM as SCM_RIGHTS
//
// # Offsets
//
// Offsets are absolute and count bytes of a stream from its start. A sender keeps
// every byte until an ACK covers it. A receiver takes bytes in order: it drops
// what it has, and answers a gap with RESUME, once per offset. It acknowledges
// when it has written on a quarter of the window, when its buffer has run empty and at least
// 4 KiB are unacknowledged, at the end of the stream, and when asked by SYNC.
// So single keystrokes cost no acknowledgement.
//
// A sender may begin within Window without being asked. After a new link session
// it waits for RESUME. Whoever loses a frame says SYNC to both ends; the agent says SYNC by itself when
// a channel opens, because what came earlier was dropped.
//
// # Ends
//
// EXIT and SIGNAL are repeated on SYNC until acknowledged; a receiver acts once
// (by state, by sequence number). The relay ends with EXIT's code when it has
// written both streams up to their ends, or knows that nobody reads them.
//
// The invariant: a byte is forgotten by its sender only after the receiver has
// written it onward or has said that nobody wants it.
package stdio
