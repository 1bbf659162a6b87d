// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// answerTime is how long an answer to a datagram is waited for; one that is lost
// is sent again until the context ends.
const answerTime = time.Second

// datagram sends one of a size, which the network may have to cut into pieces,
// and expects it back.
func datagram(ctx context.Context, s settings, address string) (any, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	message := make([]byte, s.size)
	for i := range message {
		message[i] = byte(i * 7)
	}
	tries, err := exchange(ctx, conn, message)
	if err != nil {
		return nil, err
	}
	return map[string]any{"size": s.size, "tries": tries}, nil
}

// exchange sends a message until it comes back.
func exchange(ctx context.Context, conn net.Conn, message []byte) (tries int, err error) {
	got := make([]byte, maxDatagram)
	for {
		tries++
		if _, err := conn.Write(message); err != nil {
			return tries, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
			return tries, err
		}
		n, err := conn.Read(got)
		switch {
		case err == nil && bytes.Equal(got[:n], message):
			return tries, nil
		case err == nil:
			return tries, fmt.Errorf("a datagram of %d bytes came back as %d others", len(message), n)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return tries, err
		case ctx.Err() != nil:
			return tries, fmt.Errorf("a datagram of %d bytes did not come back, in %d tries", len(message), tries)
		}
	}
}

// pathMTU forbids that datagrams be cut into pieces, sends one that is as large
// as the interface lets through, and expects to be told by a router on the way
// how large they may be. One of that size then passes.
func pathMTU(ctx context.Context, _ settings, address string) (any, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ours, theirs := mtuOptions(conn)
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	option := func(set bool) (mtu int, err error) {
		controlErr := raw.Control(func(fd uintptr) {
			if set {
				err = unix.SetsockoptInt(int(fd), ours.level, ours.discover, unix.IP_PMTUDISC_DO)
				return
			}
			mtu, err = unix.GetsockoptInt(int(fd), ours.level, ours.mtu)
		})
		return mtu, errors.Join(err, controlErr)
	}
	if _, err := option(true); err != nil {
		return nil, err
	}
	first, err := option(false)
	if err != nil {
		return nil, err
	}
	now := first
	for now == first {
		_, err := conn.Write(make([]byte, first-theirs))
		if err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("nobody says that %d bytes are too much", first)
		}
		time.Sleep(steadyPause)
		if now, err = option(false); err != nil {
			return nil, err
		}
	}
	// The router's complaint is an error of the socket, too, until somebody takes it.
	if err := raw.Control(func(fd uintptr) { _, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) }); err != nil {
		return nil, err
	}
	if _, err := exchange(ctx, conn, make([]byte, now-theirs)); err != nil {
		return nil, err
	}
	return map[string]any{"interface": first, "path": now}, nil
}

// mtuOption is how a family of addresses calls these options.
type mtuOption struct{ level, discover, mtu int }

// mtuOptions are those of the family of a connection, and the size of the headers
// before the contents of a datagram.
func mtuOptions(conn net.Conn) (mtuOption, int) {
	if strings.Contains(conn.RemoteAddr().String(), "[") {
		return mtuOption{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU}, 48
	}
	return mtuOption{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU}, 28
}

// lookup asks the resolver of /etc/resolv.conf for the addresses of a name.
func lookup(ctx context.Context, s settings, name string) (any, error) {
	resolver := &net.Resolver{PreferGo: true}
	if s.tcp {
		resolver.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	return resolver.LookupHost(ctx, name)
}
