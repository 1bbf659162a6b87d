// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// dial connects to a server of ours, says what the connection is for, and bounds
// it by the context.
func dial(ctx context.Context, address, line string) (*net.TCPConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(deadline)
	}
	if err == nil {
		_, err = io.WriteString(conn, line+"\n")
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn.(*net.TCPConn), nil
}

// upload sends a content and compares the sums of both ends.
func upload(ctx context.Context, s settings, address string) (any, error) {
	conn, err := dial(ctx, address, fmt.Sprint("take ", s.bytes))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	began := time.Now()
	sum, err := giveContent(conn, s.bytes)
	if err != nil {
		return nil, err
	}
	if err := conn.CloseWrite(); err != nil {
		return nil, err
	}
	theirs, err := io.ReadAll(conn)
	if err != nil {
		return nil, err
	}
	return equalSums(s.bytes, began, sum.String(), strings.TrimSpace(string(theirs)))
}

// download receives a content and compares it with what it must be.
func download(ctx context.Context, s settings, address string) (any, error) {
	conn, err := dial(ctx, address, fmt.Sprint("give ", s.bytes))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	began := time.Now()
	in := bufio.NewReaderSize(conn, blockBytes)
	sum, err := takeContent(in, s.bytes)
	if err != nil {
		return nil, err
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("after all bytes there is no end: %w", err)
	}
	want, err := giveContent(io.Discard, s.bytes)
	if err != nil {
		return nil, err
	}
	return equalSums(s.bytes, began, sum.String(), want.String())
}

func equalSums(n int64, began time.Time, ours, theirs string) (any, error) {
	if ours != theirs {
		return nil, fmt.Errorf("the sum here is %s, there %q", ours, theirs)
	}
	return map[string]any{"bytes": n, "sum": ours, "seconds": time.Since(began).Seconds()}, nil
}

// parallel has n connections at the same time, all open before the first says
// anything, and compares what each gets back with what it sent.
func parallel(ctx context.Context, s settings, address string) (any, error) {
	var open, done sync.WaitGroup
	errs := make([]error, s.n)
	for i := range s.n {
		open.Add(1)
		done.Go(func() {
			conn, err := dial(ctx, address, "echo")
			open.Done()
			if err != nil {
				errs[i] = err
				return
			}
			defer conn.Close()
			open.Wait()
			errs[i] = echoOnce(conn, i, s.size)
		})
	}
	done.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return map[string]any{"connections": s.n, "bytes": s.n * s.size}, nil
}

// echoOnce sends a message of its own and expects it back, and then the end.
func echoOnce(conn *net.TCPConn, seed, size int) error {
	message := make([]byte, size)
	for i := range message {
		message[i] = byte(i + seed*31)
	}
	var sent error
	var sending sync.WaitGroup
	sending.Go(func() {
		_, sent = conn.Write(message)
		sent = errors.Join(sent, conn.CloseWrite())
	})
	got, err := io.ReadAll(conn)
	sending.Wait()
	if err := errors.Join(err, sent); err != nil {
		return fmt.Errorf("connection %d: %w", seed, err)
	}
	if !bytes.Equal(got, message) {
		return fmt.Errorf("connection %d sent %d bytes and got %d others", seed, len(message), len(got))
	}
	return nil
}

// halfClose ends its side long before the other one, which has more to say then.
func halfClose(ctx context.Context, s settings, address string) (any, error) {
	conn, err := dial(ctx, address, fmt.Sprint("give ", s.bytes))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.CloseWrite(); err != nil {
		return nil, err
	}
	sum, err := takeContent(conn, s.bytes)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		return nil, fmt.Errorf("writing after the end of writing: %w", err)
	}
	return map[string]any{"bytes": s.bytes, "sum": sum.String()}, nil
}

// reset expects that the other side ends the connection by a RST.
func reset(ctx context.Context, _ settings, address string) (any, error) {
	conn, err := dial(ctx, address, "reset")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
		return nil, fmt.Errorf("the connection was not reset but: %w", err)
	}
	return "reset", nil
}

// refused expects that nobody listens there, and that somebody says so.
func refused(ctx context.Context, _ settings, address string) (any, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err == nil {
		return nil, errors.Join(errors.New("somebody listens"), conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, err
	}
	return "refused", nil
}

// steady keeps one connection and sends a byte back and forth all the time; the
// longest pause is told.
func steady(ctx context.Context, s settings, address string) (any, error) {
	conn, err := dial(ctx, address, "echo")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var longest time.Duration
	count := 0
	for end := time.Now().Add(s.duration); time.Now().Before(end); count++ {
		took, err := ping(conn, byte(count))
		if err != nil {
			return nil, fmt.Errorf("after %d messages: %w", count, err)
		}
		longest = max(longest, took)
		time.Sleep(steadyPause)
	}
	return map[string]any{"messages": count, "longest_seconds": longest.Seconds()}, nil
}

// steadyPause keeps what only must not stop from taking a processor.
const steadyPause = 10 * time.Millisecond
