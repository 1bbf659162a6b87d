// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"bulkhead/bus"
	"bulkhead/bus/link"
	agentv1 "bulkhead/proto/agent/v1"
	"bulkhead/vm-worker/hypervisor"
)

// Between two attempts to open a session with a guest. A guest that is booting
// answers the first; waiting matters only when something is wrong.
const (
	linkRetryMin = 20 * time.Millisecond
	linkRetryMax = time.Second
)

// A guest whose link is cut more often than this, on either channel, is not
// unlucky.
const (
	maxSessions   = 30
	sessionWindow = time.Minute
)

// serveLinks keeps the channels of the guest link served for as long as the VM
// lives or until endLinks.
func (s *sandbox) serveLinks(vm hypervisor.VM) {
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	s.stopLinks = cancel
	s.mu.Unlock()
	s.listenOOM(ctx)
	s.listenMemory(ctx)
	s.listenReady(ctx) // before the guest is woken, or its word would be lost
	s.links.Go(func() { s.serveChannel(ctx, "ctl", vm.DialCtl, s.serveCtl) })
	s.links.Go(func() { s.serveChannel(ctx, "io", vm.DialIO, s.serveIO) })
	s.links.Go(func() {
		select {
		case <-s.offered: // until then the guest has the port closed
			s.serveChannel(ctx, "net", vm.DialNet, s.serveLoopback)
		case <-ctx.Done():
		}
	})
}

// endLinks stops serving the guest and waits until nothing serves it any more.
func (s *sandbox) endLinks() {
	s.mu.Lock()
	stop := s.stopLinks
	s.mu.Unlock()
	stop()
	s.links.Wait()
}

// serveChannel opens one session after the other on a channel.
func (s *sandbox) serveChannel(ctx context.Context, name string, dial func(context.Context) (net.Conn, error), serve func(context.Context, *link.Session) error) {
	log := s.w.log.With("sandbox", s.id, "channel", name)
	retry := linkRetryMin
	for ctx.Err() == nil {
		began := time.Now()
		err := s.session(ctx, dial, serve)
		if ctx.Err() != nil {
			return
		}
		log.Debug("guest link session ended", "error", err)
		if time.Since(began) > linkRetryMax {
			retry = linkRetryMin
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		retry = min(2*retry, linkRetryMax)
	}
}

// session opens and serves one session.
func (s *sandbox) session(ctx context.Context, dial func(context.Context) (net.Conn, error), serve func(context.Context, *link.Session) error) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	sess, err := link.Dial(ctx, conn)
	if err != nil {
		return err
	}
	defer sess.Close()
	return serve(ctx, sess)
}

// serveCtl joins the guest's ctl session to the bus, as the guest of this
// sandbox and nobody else.
func (s *sandbox) serveCtl(ctx context.Context, sess *link.Session) error {
	toBus, err := s.dialGuest(ctx)
	if err != nil {
		return err // the bus is absent: no fault of the guest's
	}
	defer toBus.Close()
	if s.tooManySessions() {
		return s.endMisbehaving(ctx, "the guest was cut from the bus again and again")
	}
	if err := bus.Greet(sess, s.greeting()); err != nil {
		return err
	}
	guest := sess.NetConn()
	defer guest.Close()
	done := make(chan error, 2)
	pump := func(dst, src net.Conn) {
		_, err := io.Copy(dst, src)
		done <- err
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(toBus, guest) })
	pumps.Go(func() { pump(guest, toBus) })
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	toBus.Close()
	guest.Close()
	pumps.Wait()
	return err
}

// greeting says whose machine the guest is. Each session's has randomness of its own.
func (s *sandbox) greeting() *agentv1.Greeting {
	entropy := make([]byte, entropyBytes)
	_, _ = rand.Read(entropy) // never fails: crypto/rand ends the program instead
	return &agentv1.Greeting{Vm: s.id, Entropy: entropy, UnixNanos: time.Now().UnixNano()}
}

// endMisbehaving kills a VM whose guest does not stop breaking rules.
func (s *sandbox) endMisbehaving(ctx context.Context, why string) error {
	s.w.tasks.Go(func() { // the end of the VM, which kill waits for, waits for this session
		if err := s.kill(context.Background(), why); err != nil {
			s.w.log.Error("misbehaving vm not killed", "sandbox", s.id, "error", err)
		}
	})
	<-ctx.Done()
	return ctx.Err()
}

func (s *sandbox) tooManySessions() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.sessions = append(s.sessions, now)
	for len(s.sessions) > 0 && now.Sub(s.sessions[0]) > sessionWindow {
		s.sessions = s.sessions[1:]
	}
	return len(s.sessions) > maxSessions
}

func (s *sandbox) serveIO(ctx context.Context, sess *link.Session) error {
	if s.tooManySessions() {
		return s.endMisbehaving(ctx, "the guest broke the rules of its standard streams again and again")
	}
	return s.router.ServeGuest(ctx, sess)
}

// listenReady listens for the agent's word that its bus connection is up, until
// ctx ends.
func (s *sandbox) listenReady(ctx context.Context) {
	var once sync.Once
	ready := s.answers()
	sub, err := bus.OnAgentEvent(s.w.conn, s.id, "ready", func(r *agentv1.Ready) {
		s.mu.Lock()
		s.kernel = printable(r.Kernel, 64)
		s.mu.Unlock()
		once.Do(func() { close(ready) })
	})
	if err != nil {
		s.w.log.Error("not listening for the agent", "sandbox", s.id, "error", err)
		return
	}
	s.unsubscribeAtEnd(ctx, sub)
}

func (s *sandbox) unsubscribeAtEnd(ctx context.Context, sub *nats.Subscription) {
	s.links.Add(1)
	context.AfterFunc(ctx, func() { // no goroutine that waits: there are several of these for each VM
		defer s.links.Done()
		if err := sub.Unsubscribe(); err != nil {
			s.w.log.Debug("agent's events not unsubscribed", "sandbox", s.id, "error", err)
		}
	})
}

// listenOOM listens for the agent's word that the guest's kernel has killed for
// want of memory, until ctx ends.
func (s *sandbox) listenOOM(ctx context.Context) {
	sub, err := bus.OnAgentEvent(s.w.conn, s.id, "oom", func(e *agentv1.OutOfMemory) {
		for _, c := range s.memberList() {
			if c.key == e.Container {
				c.noteOOM(e.Kills, time.Now())
			}
		}
	})
	if err != nil {
		s.w.log.Error("not listening for kills by the guest's kernel", "sandbox", s.id, "error", err)
		return
	}
	s.unsubscribeAtEnd(ctx, sub)
}

// dialGuest opens a connection to the bus that is the guest's from its first
// byte after the preamble.
func (s *sandbox) dialGuest(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(s.w.runDir, "guest.sock"))
	if err != nil {
		return nil, fmt.Errorf("connect the guest of %s to the bus: %w", s.id, err)
	}
	if _, err := io.WriteString(conn, "GUEST "+s.id+"\n"); err != nil {
		conn.Close()
		return nil, fmt.Errorf("name the guest of %s to the bus: %w", s.id, err)
	}
	return conn, nil
}
