// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package idle_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/bus/idle"
)

// pair is a connection of the kernel's, and its other end.
func pair(t *testing.T, network string) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen(network, filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestAWaitingReadHoldsNoBuffer(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			near, far := pair(t, network)
			buffer := make([]byte, 16)
			var held atomic.Int32
			given := make(chan struct{}, 8)
			read := func() (string, error) {
				n, err := idle.Read(near, func() []byte { held.Store(1); return buffer }, func() { held.Store(0); given <- struct{}{} })
				return string(buffer[:n]), err
			}
			type result struct {
				text string
				err  error
			}
			first := make(chan result, 1)
			go func() {
				text, err := read()
				first <- result{text, err}
			}()
			<-given // it has found nothing, and waits
			if held.Load() != 0 {
				t.Error("a read that waits holds its buffer")
			}
			if _, err := far.Write([]byte("one")); err != nil {
				t.Fatal(err)
			}
			if r := <-first; r.text != "one" || r.err != nil || held.Load() != 1 {
				t.Errorf("read %q, %v", r.text, r.err)
			}
			_ = near.SetReadDeadline(time.Unix(1, 0))
			if _, err := read(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("behind its deadline a read gives %v", err)
			}
			_ = near.SetReadDeadline(time.Time{})
			far.Close()
			if _, err := read(); !errors.Is(err, io.EOF) {
				t.Errorf("the end of the connection is %v", err)
			}
			near.Close()
			if _, err := read(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a closed connection gives %v", err)
			}
		})
	}
}

func TestAConnectionWithoutDescriptorIsReadAllTheSame(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go func() { _, _ = far.Write([]byte("two")) }()
	buffer := make([]byte, 16)
	n, err := idle.Read(near, func() []byte { return buffer }, func() { t.Error("what was not read is given back") })
	if string(buffer[:n]) != "two" || err != nil {
		t.Errorf("read %q, %v", buffer[:n], err)
	}
}
