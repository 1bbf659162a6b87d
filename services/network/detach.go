// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// detach takes everything back. That nothing is there is no error.
func (s *Service) detach(ctx context.Context, req *netv1.DetachRequest) (*netv1.DetachReply, error) {
	a, unlock, err := s.lock(ctx, req.Sandbox)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.recall(ctx, a); err != nil {
		return nil, err
	}
	if a.record == nil {
		return &netv1.DetachReply{}, nil
	}
	if err := s.dismantle(ctx, a); err != nil {
		return nil, bus.Errorf(bus.ReasonOf(err), "detach sandbox %s: %w", req.Sandbox, err)
	}
	s.event(ctx, req.Sandbox, "detached", map[string]string{"reason": "asked for"})
	return &netv1.DetachReply{}, nil
}

// Between two attempts to take back what could not be.
const (
	againMin = time.Second
	againMax = 30 * time.Second
)

// dismantle takes back what was made, forgets the record and lets go of the
// namespace. What fails leaves the record, and is tried again until it succeeds: the
// open namespace keeps alive what an engine wired into it, and nobody else may come
// and ask. The caller holds a.op.
func (s *Service) dismantle(ctx context.Context, a *attachment) error {
	err := s.tryDismantle(ctx, a)
	if err != nil && !a.retrying {
		a.retrying = true
		s.tasks.Go(func() { s.dismantleAgain(a) })
	}
	return err
}

// dismantleAgain runs until it is done, the sandbox is attached anew, or the service
// ends; the next one begins with it.
func (s *Service) dismantleAgain(a *attachment) {
	for pause := againMin; ; pause = min(2*pause, againMax) {
		select {
		case <-time.After(pause):
		case <-s.life.Done():
			return
		}
		same, unlock, err := s.lock(s.life, a.sandbox)
		if err != nil {
			return
		}
		left := same == a && a.record != nil && a.record.State == stateDetaching
		if left {
			err = s.tryDismantle(s.life, a)
		}
		if err == nil {
			a.retrying = false
			if left {
				s.event(s.life, a.sandbox, "detached", map[string]string{"reason": "what could not be taken back before is"})
			}
		}
		unlock()
		if err == nil {
			return
		}
		s.log.Warn("a network is not taken back whole; it is tried again", "sandbox", a.sandbox, "error", err)
	}
}

func (s *Service) tryDismantle(ctx context.Context, a *attachment) error {
	a.stopFollowing()
	a.record.State = stateDetaching
	if err := s.save(ctx, a, "detaching-record"); err != nil {
		// A service that starts with the older record finds what is left in the
		// namespace and makes it whole again; the caller then asks again.
		s.log.Warn("record of a network not written", "sandbox", a.sandbox, "error", err)
	}
	var errs []error
	for _, nic := range slices.Clone(a.record.Nics) {
		errs = append(errs, s.take(a, nic))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := s.forget(ctx, a.sandbox); err != nil {
		return err
	}
	s.unclaim(a.ns.ID, a.sandbox)
	a.ns.Close()
	a.ns, a.record = nil, nil
	s.mu.Lock()
	a.shown = nil
	s.mu.Unlock()
	s.feed.detached(a.sandbox)
	s.log.Info("network detached", "sandbox", a.sandbox)
	return nil
}

// successor is another process in the namespace of an attachment whose own has
// ended; nil when there is none.
func successor(a *attachment) *netspace.Namespace {
	other, err := netspace.Find(a.ns.ID)
	if err != nil {
		return nil
	}
	if other.PID == 0 { // a mount alone
		other.Close()
		return nil
	}
	return other
}

// inUse tells whether a VM has one of the taps open.
func inUse(a *attachment) bool {
	for _, nic := range a.record.Nics {
		l, err := a.ns.Netlink().LinkByName(nic.Device)
		if err == nil && l.Type() == "tuntap" && l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
			return true
		}
	}
	return false
}

// bereaved is what happens when the process that named a namespace has ended:
// another one in it takes its place; else, when no VM has a tap open, nobody
// needs the attachment, which keeps the namespace alive, any more. It tells
// whether the follower is done; the caller holds a.op.
func (s *Service) bereaved(a *attachment) (over bool) {
	if other := successor(a); other != nil {
		s.tasks.Go(func() { s.inherit(a, other) })
		return true
	}
	if inUse(a) {
		return false
	}
	s.tasks.Go(func() { s.detachGone(a) })
	return true
}

// inherit has another process take the place of the one that ended.
func (s *Service) inherit(a *attachment, ns *netspace.Namespace) {
	same, unlock, err := s.lock(s.life, a.sandbox)
	if err != nil {
		ns.Close()
		return
	}
	defer unlock()
	if same != a || a.record == nil {
		ns.Close()
		return
	}
	before := proto.CloneOf(a.record)
	if err := s.reanchor(a, ns); err != nil {
		s.log.Error("a network namespace is not followed any more", "sandbox", a.sandbox, "error", err)
		return
	}
	_ = s.tell(s.life, a, before)
}

// detachGone detaches an abandoned attachment. A service that ends meanwhile
// waits for it.
func (s *Service) detachGone(a *attachment) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), undoTime)
	defer cancel()
	same, unlock, err := s.lock(ctx, a.sandbox)
	if err != nil {
		return
	}
	defer unlock()
	if same != a || a.record == nil {
		return
	}
	if err := s.dismantle(ctx, a); err != nil {
		s.log.Error("the network of a sandbox that is gone is not taken back whole", "sandbox", a.sandbox, "error", err)
		return
	}
	s.event(ctx, a.sandbox, "detached", map[string]string{"reason": "its network namespace was left by every process and no VM has its taps open"})
}
