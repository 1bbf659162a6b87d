// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// throughput is bytes in a time, as who received them saw it.
type throughput struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// sink reads to the end; the time is that between the first bytes and the last.
func sink(r io.Reader) (throughput, error) {
	var t throughput
	block := make([]byte, blockBytes)
	var began, last time.Time
	for {
		n, err := r.Read(block)
		if n > 0 {
			last = time.Now()
			if began.IsZero() {
				began = last
			}
			t.Bytes += int64(n)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return t, err
		}
	}
	t.Seconds = last.Sub(began).Seconds()
	return t, nil
}

// source writes for a time.
func source(conn *net.TCPConn, d time.Duration) error {
	block := make([]byte, blockBytes)
	for end := time.Now().Add(d); time.Now().Before(end); {
		if _, err := conn.Write(block); err != nil {
			return err
		}
	}
	return conn.CloseWrite()
}

// send measures how fast bytes reach the server.
func send(ctx context.Context, s settings, address string) (any, error) {
	conn, err := dial(ctx, address, "sink")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := source(conn, s.duration); err != nil {
		return nil, err
	}
	var t throughput
	if err := json.NewDecoder(conn).Decode(&t); err != nil {
		return nil, fmt.Errorf("read what the server counted: %w", err)
	}
	return t, nil
}

// receive measures how fast bytes come from the server.
func receive(ctx context.Context, s settings, address string) (any, error) {
	conn, err := dial(ctx, address, fmt.Sprint("source ", s.duration.Milliseconds()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return sink(conn)
}

// ping sends a byte and waits for it.
func ping(conn net.Conn, b byte) (time.Duration, error) {
	buf := []byte{b}
	began := time.Now()
	if _, err := conn.Write(buf); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(conn, buf); err != nil {
		return 0, err
	}
	if buf[0] != b {
		return 0, fmt.Errorf("%d came back for %d", buf[0], b)
	}
	return time.Since(began), nil
}

// roundTrip measures the way of one byte there and back, by TCP.
func roundTrip(ctx context.Context, s settings, address string) (any, error) {
	conn, err := dial(ctx, address, "echo")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var took []time.Duration
	for i := range s.n + 10 {
		d, err := ping(conn, byte(i))
		if err != nil {
			return nil, err
		}
		if i >= 10 { // the first ones find nothing in any cache
			took = append(took, d)
		}
	}
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return map[string]any{"n": s.n, "median_ms": ms(took[len(took)/2]), "p95_ms": ms(took[len(took)*95/100])}, nil
}

// flood sends datagrams as fast as it can.
func flood(ctx context.Context, s settings, address string) (any, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	message := make([]byte, max(s.size, 1))
	message[0] = countMark
	sent := 0
	for end := time.Now().Add(s.duration); time.Now().Before(end); sent++ {
		// A full queue is no failure of what is measured here.
		if _, err := conn.Write(message); err != nil && !errors.Is(err, syscall.ENOBUFS) {
			return nil, err
		}
	}
	return sent, nil
}

// rate measures how many datagrams a second reach the server, which counts them,
// when they are sent as fast as it goes.
func rate(ctx context.Context, s settings, address string) (any, error) {
	if _, err := counted(ctx, address); err != nil {
		return nil, err // and so the count begins at 0
	}
	sent, err := flood(ctx, s, address)
	if err != nil {
		return nil, err
	}
	n, err := counted(ctx, address)
	if err != nil {
		return nil, err
	}
	return map[string]any{"sent": sent, "received": n, "per_second": float64(n) / s.duration.Seconds()}, nil
}

// backRate is rate the other way: the server floods.
func backRate(ctx context.Context, s settings, address string) (any, error) {
	packets, err := net.ListenPacket("udp", "")
	if err != nil {
		return nil, err
	}
	defer packets.Close()
	_, port, err := net.SplitHostPort(packets.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, address, fmt.Sprintf("flood %s %d %d", port, s.size, s.duration.Milliseconds()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var counting sync.WaitGroup
	var received int
	counting.Go(func() {
		for buf := make([]byte, maxDatagram); ; received++ {
			if _, _, err := packets.ReadFrom(buf); err != nil {
				return // nothing comes any more
			}
		}
	})
	sent, err := io.ReadAll(conn)
	err = errors.Join(err, packets.SetReadDeadline(time.Now().Add(answerTime)))
	counting.Wait()
	if err != nil {
		return nil, err
	}
	return map[string]any{"sent": json.RawMessage(sent), "received": received, "per_second": float64(received) / s.duration.Seconds()}, nil
}

// counted asks the server for its count.
func counted(ctx context.Context, address string) (int, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	buf := make([]byte, maxDatagram)
	for {
		if _, err := conn.Write([]byte{askMark}); err != nil {
			return 0, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
			return 0, err
		}
		n, err := conn.Read(buf)
		if err == nil {
			return strconv.Atoi(string(buf[:n]))
		}
		if ctx.Err() != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("ask for the count: %w", err)
		}
	}
}

// requests measures how many requests of HTTP n clients get answered a second,
// each on a connection that it keeps.
func requests(ctx context.Context, s settings, address string) (any, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: s.n}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	counts, errs := make([]int, s.n), make([]error, s.n)
	var clients sync.WaitGroup
	end := time.Now().Add(s.duration)
	for i := range s.n {
		clients.Go(func() {
			for time.Now().Before(end) && errs[i] == nil {
				_, errs[i] = get(ctx, client, address)
				counts[i]++
			}
		})
	}
	clients.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	return map[string]any{"requests": total, "per_second": float64(total) / s.duration.Seconds()}, nil
}

// read tells what a server of HTTP says.
func read(ctx context.Context, _ settings, address string) (any, error) {
	text, err := get(ctx, http.DefaultClient, address)
	return strings.TrimSpace(text), err
}

func get(ctx context.Context, client *http.Client, address string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	reply, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		return "", err
	}
	if reply.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the server answers %s", reply.Status)
	}
	return string(text), nil
}
