// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
)

const (
	guestHello        = "GUEST "
	guestHelloTimeout = 5 * time.Second
	maxSandboxID      = 128
)

// guests keeps the live connection of each sandbox: one, the newest. A worker
// that was restarted comes back before its old connection is noticed to be dead.
type guests struct {
	mu   sync.Mutex // guards live
	live map[string]*guestSession
}

type guestSession struct {
	gate *gate
	end  sync.Once
	told bool          // ended by us on purpose; set through end, before the gate is closed
	done chan struct{} // closed when the connection has ended
}

// finish ends the session on purpose and waits for it.
func (s *guestSession) finish() {
	s.end.Do(func() { s.told = true })
	s.gate.close()
	<-s.done
}

// serveGuest takes one connection to guest.sock: a line that names the sandbox,
// then the guest's own bytes.
func (s *Server) serveGuest(conn net.Conn) {
	defer conn.Close()
	if err := s.checkPeer(conn); err != nil {
		s.log.Warn("guest connection refused", "error", err)
		return
	}
	reader := bufio.NewReaderSize(conn, 2*maxGuestLine)
	sandbox, err := readGuestHello(conn, reader)
	if err != nil {
		s.log.Warn("guest connection refused", "error", err)
		return
	}
	upstream, _, err := s.ids.open(guestIdentity(sandbox))
	if err != nil {
		s.log.Warn("guest connection refused", "sandbox", sandbox, "error", err)
		return
	}
	session := &guestSession{
		gate: &gate{
			sandbox: sandbox, guest: conn, reader: reader, server: upstream, done: make(chan struct{}),
			rules: guestRules{inbox: bus.InboxPrefix(sandbox) + "."},
		},
		done: make(chan struct{}),
	}
	s.enroll(sandbox, session)
	s.log.Debug("guest connected", "sandbox", sandbox)
	reason := session.gate.run()
	s.leave(sandbox, session)
	// Whoever ends the session on purpose has won this Once; then it is no cut.
	session.end.Do(func() {})
	if session.told || s.closing.Load() || errors.Is(reason, errGuestGone) {
		s.log.Debug("guest disconnected", "sandbox", sandbox)
		return
	}
	s.reportCut(sandbox, reason.Error())
}

// enroll makes the session the live one of its sandbox, after the end of the
// one before it.
func (s *Server) enroll(sandbox string, session *guestSession) {
	for {
		s.guests.mu.Lock()
		old := s.guests.live[sandbox]
		if old == nil {
			s.guests.live[sandbox] = session
			s.guests.mu.Unlock()
			return
		}
		s.guests.mu.Unlock()
		s.log.Debug("guest connection replaced by a newer one", "sandbox", sandbox)
		old.finish()
	}
}

func (s *Server) leave(sandbox string, session *guestSession) {
	s.guests.mu.Lock()
	if s.guests.live[sandbox] == session {
		delete(s.guests.live, sandbox)
	}
	s.guests.mu.Unlock()
	close(session.done)
}

// DisconnectGuest ends the connection of a sandbox, if there is one, and waits
// until its subscriptions are gone. It does not keep the guest from coming back.
func (s *Server) DisconnectGuest(sandbox string) {
	s.guests.mu.Lock()
	session := s.guests.live[sandbox]
	s.guests.mu.Unlock()
	if session != nil {
		session.finish()
	}
}

// reportCut says that a guest broke a rule: in the log, to the hook, and as the
// event ev.<host>.sandbox.<id>.guest_cut.
func (s *Server) reportCut(sandbox, reason string) {
	s.log.Warn("guest cut", "sandbox", sandbox, "reason", reason)
	if s.opts.OnGuestCut != nil {
		s.opts.OnGuestCut(sandbox, reason)
	}
	ctx, cancel := context.WithTimeout(context.Background(), eventTimeout)
	defer cancel()
	err := bus.Publish(ctx, s.self, &busv1.Event{
		Kind: "sandbox", Id: sandbox, Event: "guest_cut", Attributes: map[string]string{"reason": reason},
	})
	if err != nil && !s.closing.Load() {
		s.log.Warn("event of a cut guest not published", "sandbox", sandbox, "error", err)
	}
}

// readGuestHello reads "GUEST <sandbox>\n", which the worker writes before the
// guest's bytes.
func readGuestHello(conn net.Conn, r *bufio.Reader) (string, error) {
	if err := conn.SetReadDeadline(time.Now().Add(guestHelloTimeout)); err != nil {
		return "", fmt.Errorf("read the guest's name: %w", err)
	}
	line, err := r.ReadSlice('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read the guest's name: %w", err)
	}
	name, ok := strings.CutPrefix(string(line), guestHello)
	name, ended := strings.CutSuffix(name, "\n")
	if !ok || !ended || !validSubject(name) || len(name) > maxSandboxID {
		return "", fmt.Errorf("the first line %.64q is not \"GUEST <sandbox>\"", line)
	}
	return name, conn.SetReadDeadline(time.Time{})
}
