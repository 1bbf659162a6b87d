// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

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
	if a.record == nil {
		return &netv1.DetachReply{}, nil
	}
	if err := s.dismantle(ctx, a); err != nil {
		return nil, bus.Errorf(bus.ReasonOf(err), "detach sandbox %s: %w", req.Sandbox, err)
	}
	s.event(ctx, req.Sandbox, "detached", map[string]string{"reason": "asked for"})
	return &netv1.DetachReply{}, nil
}

// dismantle takes back what was made, forgets the record and lets go of the
// namespace. What fails leaves the record, so that it can be called again. The
// caller holds a.op.
func (s *Service) dismantle(ctx context.Context, a *attachment) error {
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

// abandoned tells whether nobody needs an attachment any more: the process that
// named its namespace has ended, no other one is in it, and no VM has a tap
// open. The service's own descriptors keep the namespace alive until then.
func (s *Service) abandoned(ctx context.Context, a *attachment) bool {
	if other, err := netspace.Find(a.ns.ID); err == nil {
		inside := other.PID != 0
		other.Close()
		if inside {
			return false
		}
	}
	for _, nic := range a.record.Nics {
		l, err := a.ns.Netlink().LinkByName(nic.Device)
		if err == nil && l.Type() == "tuntap" && l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
			return false
		}
	}
	return true
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
