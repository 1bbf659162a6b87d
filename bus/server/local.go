// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// listen makes a unix socket for root below the run directory. The lock on the
// directory is held, so a socket that is there was left by a daemon that died.
func (s *Server) listen(name string, serve func(net.Conn)) error {
	path := filepath.Join(s.opts.RunDir, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace the stale socket %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	s.listeners = append(s.listeners, l)
	s.running.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				// Out of descriptors, most likely; connections that end make room.
				s.log.Error("accept failed", "socket", path, "error", err)
				if !s.rest(acceptRest) {
					return
				}
				continue
			}
			if !s.track(conn) {
				_ = conn.Close()
				continue
			}
			s.running.Go(func() {
				defer s.untrack(conn)
				serve(conn)
			})
		}
	})
	return nil
}

// checkPeer lets root in, and the user that the daemon runs as.
func (s *Server) checkPeer(conn net.Conn) error {
	uid, _, err := peer(conn)
	if err != nil {
		return err
	}
	if uid != 0 && int(uid) != os.Geteuid() {
		return fmt.Errorf("the peer is uid %d, and the bus serves root only", uid)
	}
	return nil
}

// peer is who opened the other end of a unix connection, as the kernel says.
func peer(conn net.Conn) (uid uint32, pid int32, err error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, 0, fmt.Errorf("read the peer's credentials: %w", err)
	}
	var cred *syscall.Ucred
	var failure error
	if err := raw.Control(func(fd uintptr) {
		cred, failure = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, 0, fmt.Errorf("read the peer's credentials: %w", err)
	}
	if failure != nil {
		return 0, 0, fmt.Errorf("read the peer's credentials: %w", failure)
	}
	return cred.Uid, cred.Pid, nil
}

// serveLocal joins a connection to bus.sock with one inside the server. A peer
// without rights is told so in the protocol's words, which clients understand.
func (s *Server) serveLocal(conn net.Conn) {
	defer conn.Close()
	if err := s.checkPeer(conn); err != nil {
		s.log.Warn("bus connection refused", "error", err)
		refuse(conn)
		return
	}
	uid, pid, err := peer(conn)
	if err != nil {
		s.log.Warn("bus connection refused", "error", err)
		return
	}
	upstream, info, err := s.ids.open(identity{name: fmt.Sprintf("uid %d pid %d", uid, pid), account: accountHost})
	if err != nil {
		s.log.Warn("bus connection refused", "error", err)
		return
	}
	defer upstream.Close()
	if _, err := conn.Write(info); err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(upstream, conn) // how a connection ends is the client's affair
		_ = upstream.Close()
	})
	both.Go(func() {
		// Only the end of the server's side closes the client's, so that what the
		// server wrote last still arrives. When the bus closes, the client also gets
		// until the deadline that close sets: a client that reads the end of the
		// stream right behind a reply may drop the reply.
		_, _ = io.Copy(conn, upstream)
		if s.closing.Load() {
			_, _ = io.Copy(io.Discard, conn)
		}
		_ = conn.Close()
	})
	both.Wait()
}

// refuse is all that a peer without rights hears. The client's own first words,
// CONNECT and PING, are read to their end, because closing before would break
// its write and lose it the answer.
func refuse(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(refusalTimeout)) // a peer that stalls loses the answer, nothing else
	_, _ = io.WriteString(conn, "INFO {\"server_id\":\"bulkhead\",\"version\":\"2.0.0\",\"proto\":1,\"max_payload\":1024}\r\n")
	words := bufio.NewScanner(io.LimitReader(conn, 4*maxControlLine))
	for words.Scan() && words.Text() != "PING" {
	}
	_, _ = io.WriteString(conn, "-ERR 'Authorization Violation'\r\n")
}

const refusalTimeout = time.Second
