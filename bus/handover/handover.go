// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package handover carries descriptors to vm-worker, which NATS cannot: the
// client side, for the frontend, and the packets both sides speak
// (docs/architecture.md, "Handover"). The server is vm-worker/share.
//
// It imports nothing of ours. The invariant to remember: Send returns nil only
// after the worker has said that it holds every descriptor; until the token is
// claimed by a vm.create the worker may drop them again.
package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of the protocol.
const (
	MaxPerPacket = 200  // descriptors in one packet; the kernel's own limit is 253
	MaxPacket    = 1024 // bytes of one packet's text, either way
	MaxFiles     = 1000 // descriptors under one token
	MaxToken     = 64   // characters of a token
)

// Packet is what the client sends; the descriptors travel beside it.
type Packet struct {
	Token string `json:"token"`
	Last  bool   `json:"last"`
}

// Answer is what the server says after the last packet, or at the first fault.
type Answer struct {
	OK    bool   `json:"ok,omitempty"`
	Error string `json:"error,omitempty"`
}

// ValidToken tells whether token is a plausible operation id: short, and made of
// letters, digits, '-' and '_'.
func ValidToken(token string) bool {
	if token == "" || len(token) > MaxToken {
		return false
	}
	for _, c := range []byte(token) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// Send hands files to the worker listening at socket, under token. The files
// stay the caller's to close. Without a deadline in ctx it takes at most 10 s.
func Send(ctx context.Context, socket, token string, files []*os.File) error {
	if !ValidToken(token) {
		return fmt.Errorf("handing over descriptors: %q is no token: use 1 to %d letters, digits, '-' or '_'", token, MaxToken)
	}
	if len(files) > MaxFiles {
		return fmt.Errorf("handing over %d descriptors: at most %d mounts can be given to a container", len(files), MaxFiles)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return fmt.Errorf("handing over descriptors: %s does not answer, is the vm service running? %w", socket, err)
	}
	defer c.Close()
	conn := c.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	sendErr := sendPackets(conn, token, files)
	answer, err := readAnswer(conn)
	switch {
	case err == nil && answer.OK:
		return nil
	case err == nil:
		return fmt.Errorf("handing over descriptors: the vm service refused them: %s", answer.Error)
	case ctx.Err() != nil:
		return fmt.Errorf("handing over descriptors: no answer from the vm service: %w", ctx.Err())
	case sendErr != nil:
		return fmt.Errorf("handing over descriptors: %w", sendErr)
	}
	return fmt.Errorf("handing over descriptors: reading the answer: %w", err)
}

func sendPackets(conn *net.UnixConn, token string, files []*os.File) error {
	for first := true; first || len(files) > 0; first = false {
		n := min(len(files), MaxPerPacket)
		text, err := json.Marshal(Packet{Token: token, Last: n == len(files)})
		if err != nil {
			return fmt.Errorf("encoding a packet: %w", err)
		}
		fds := make([]int, n)
		for i, f := range files[:n] {
			fds[i] = int(f.Fd())
		}
		var rights []byte
		if n > 0 {
			rights = unix.UnixRights(fds...)
		}
		if _, _, err := conn.WriteMsgUnix(text, rights, nil); err != nil {
			return fmt.Errorf("sending %d of them: %w", n, err)
		}
		files = files[n:]
	}
	return nil
}

func readAnswer(conn *net.UnixConn) (Answer, error) {
	buf := make([]byte, MaxPacket)
	n, err := conn.Read(buf)
	if err != nil {
		return Answer{}, err
	}
	if n == 0 {
		return Answer{}, io.ErrUnexpectedEOF
	}
	var a Answer
	if err := json.Unmarshal(buf[:n], &a); err != nil {
		return Answer{}, fmt.Errorf("the answer is not understood: %w", err)
	}
	if !a.OK && a.Error == "" {
		return Answer{}, errors.New("the answer says neither ok nor error")
	}
	return a, nil
}
