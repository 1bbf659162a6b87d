// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// reconcile takes over what an earlier service left: whole attachments are
// followed again, half-made ones are taken back.
func (s *Service) reconcile(ctx context.Context) error {
	records, err := s.records.All(ctx)
	if err != nil {
		return fmt.Errorf("read the records of networks: %w", err)
	}
	for _, r := range records {
		if err := s.takeOver(ctx, r.Value); err != nil {
			s.log.Error("the network of a sandbox is not taken over", "sandbox", r.Value.Sandbox, "error", err)
		}
	}
	return nil
}

// takeOver continues one attachment.
func (s *Service) takeOver(ctx context.Context, record *netv1.Attachment) error {
	a, unlock, err := s.lock(ctx, record.Sandbox)
	if err != nil {
		return err
	}
	defer unlock()
	ns, err := reopen(record.Namespace)
	if errors.Is(err, netspace.ErrGone) {
		// It went with all that was in it.
		if err := s.forget(ctx, record.Sandbox); err != nil {
			return err
		}
		s.event(ctx, record.Sandbox, "detached", map[string]string{"reason": "its network namespace was gone when the service started"})
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.claim(ns.ID, record.Sandbox); err != nil {
		ns.Close()
		return err
	}
	a.ns, a.record = ns, record
	if record.Network == nil {
		record.Network = &netv1.Network{}
	}
	if record.State != stateAttached {
		if err := s.dismantle(ctx, a); err != nil {
			return err
		}
		s.event(ctx, record.Sandbox, "detached", map[string]string{"reason": "the service was interrupted while it was " + record.State})
		return nil
	}
	if a.events, err = ns.Subscribe(); err != nil {
		return err
	}
	for _, nic := range record.Nics {
		if err := s.wireOf(a, nic).Join(); err != nil {
			s.log.Warn("link not joined again", "sandbox", a.sandbox, "error", err)
		}
	}
	s.show(a)
	s.feed.changed(a.sandbox)
	if err := s.refresh(ctx, a); err != nil {
		s.log.Warn("a network namespace is not read", "sandbox", a.sandbox, "error", err)
	}
	s.startFollowing(a)
	return nil
}

// reopen opens the namespace of a record again.
func reopen(n *netv1.Namespace) (*netspace.Namespace, error) {
	id := netspace.ID{Device: n.GetDevice(), Inode: n.GetInode()}
	ns, err := netspace.Open(n.GetPid(), n.GetStartTime())
	if err == nil && ns.ID == id {
		return ns, nil
	}
	if err == nil {
		ns.Close()
	} else if bus.ReasonOf(err) == bus.Internal && !errors.Is(err, netspace.ErrProcessGone) {
		return nil, err
	}
	return netspace.Find(id)
}
