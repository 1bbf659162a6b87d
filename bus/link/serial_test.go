// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"net"
	"os"
	"sync"
)

// serial is a byte stream without connection boundary: what one host left in
// it the next one finds, and the guest never sees a host leave.
type serial struct {
	mu      sync.Mutex // guards all
	change  sync.Cond
	toGuest bytes.Buffer
	toHost  bytes.Buffer
	host    *serialHost
	closed  bool
}

func newSerial() *serial {
	s := &serial{}
	s.change.L = &s.mu
	return s
}

func (s *serial) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.toGuest.Len() == 0 && !s.closed {
		s.change.Wait()
	}
	if s.closed {
		return 0, os.ErrClosed
	}
	defer s.change.Broadcast()
	return s.toGuest.Read(b)
}

func (s *serial) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.toHost.Len() > 1<<20 && !s.closed {
		s.change.Wait()
	}
	if s.closed {
		return 0, os.ErrClosed
	}
	s.toHost.Write(b)
	s.change.Broadcast()
	return len(b), nil
}

func (s *serial) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.change.Broadcast()
	return nil
}

func (s *serial) inject(toGuest, toHost []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.toGuest.Write(toGuest)
	s.toHost.Write(toHost)
	s.change.Broadcast()
}

// connect returns a host's connection; cut, if not negative, is how many bytes
// of it reach the guest.
func (s *serial) connect(cut int) net.Conn {
	mine, theirs := net.Pipe()
	h := &serialHost{s: s}
	s.mu.Lock()
	s.host = h
	s.mu.Unlock()
	go func() { // host to guest
		defer theirs.Close()
		buf := make([]byte, 4096)
		for {
			n, err := theirs.Read(buf)
			if err != nil {
				break
			}
			part := buf[:n]
			if cut >= 0 {
				part = part[:min(n, cut)]
				cut -= len(part)
			}
			s.inject(part, nil)
		}
		s.mu.Lock()
		h.gone = true
		s.change.Broadcast()
		s.mu.Unlock()
	}()
	go func() { // guest to host
		for {
			s.mu.Lock()
			for s.toHost.Len() == 0 && !h.gone && s.host == h {
				s.change.Wait()
			}
			if h.gone || s.host != h {
				s.mu.Unlock()
				return
			}
			b := bytes.Clone(s.toHost.Next(4096))
			s.change.Broadcast()
			s.mu.Unlock()
			if _, err := theirs.Write(b); err != nil {
				return
			}
		}
	}()
	return mine
}

type serialHost struct {
	s    *serial
	gone bool
}
