// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"fmt"
	"net"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/link"
	"bulkhead/bus/loopback"
	netv1 "bulkhead/proto/net/v1"
)

// What listens on loopback addresses of the container's network namespace, an
// engine's resolver above all, is the guest's to use: it opens flows on the port
// "net" of its link, and each is dialed by the net service, which looks whether
// something listens there and hands the socket over.

// What one guest may have of it.
const (
	loopbackFlows  = 128
	loopbackIdle   = time.Minute // of UDP
	loopbackDials  = 8           // at once
	loopbackDial   = 5 * time.Second
	loopbackRate   = 100 // flows opened in a second
	loopbackBurst  = 200
	loopbackFrames = 20_000 // in a second
	frameBurst     = 250 * time.Millisecond
)

// offer has the net port served from now on.
func (s *sandbox) offer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.offered:
	default:
		close(s.offered)
	}
}

func (s *sandbox) serveLoopback(ctx context.Context, sess *link.Session) error {
	if s.tooManySessions() {
		return s.endMisbehaving(ctx, "the guest broke the rules of its loopback connections again and again")
	}
	pace := &loopbackPace{}
	return loopback.New(sess, loopback.Config{
		Dial: s.dialLoopback, Dials: loopbackDials, DialTime: loopbackDial,
		MaxFlows: loopbackFlows, Idle: loopbackIdle, Pace: pace.frame,
	}).Serve(ctx)
}

// dialLoopback connects to a loopback address of the sandbox's network namespace.
func (s *sandbox) dialLoopback(ctx context.Context, t loopback.Target) (loopback.Conn, error) {
	token := bus.NewOperationID()
	_, err := callNet[netv1.DialReply](ctx, s.w, "dial", &netv1.DialRequest{Sandbox: s.id, Token: token, To: &netv1.Listener{
		Protocol: t.Protocol.String(), Address: t.Address.Addr().String(), Port: uint32(t.Address.Port()),
	}})
	files, claimErr := s.w.handover.Claim(token) // also when the answer was lost: they are ours to close
	defer closeAll(files)
	if err == nil {
		err = claimErr
	}
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("the net service handed over %d descriptors for one connection", len(files))
	}
	if err != nil {
		s.w.log.Debug("loopback connection refused", "sandbox", s.id, "to", t.String(), "error", err)
		return nil, err
	}
	return net.FileConn(files[0])
}

// loopbackPace keeps a guest to its rates: it is slowed, never cut, for what an honest
// one may come to do. Each rate is kept as the time at which all that was taken is
// paid for.
type loopbackPace struct{ frames, opens time.Time }

// frame tells how long to wait before the next frame is acted on.
func (p *loopbackPace) frame(now time.Time, opens bool) time.Duration {
	p.frames = latest(p.frames, now).Add(time.Second / loopbackFrames)
	if opens {
		p.opens = latest(p.opens, now).Add(time.Second / loopbackRate)
	}
	const burst = loopbackBurst * time.Second / loopbackRate
	return max(0, p.frames.Sub(now)-frameBurst, p.opens.Sub(now)-burst)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
