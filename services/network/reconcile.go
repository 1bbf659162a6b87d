// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
	"bulkhead/services/network/wire"
)

// atOnce bounds the namespaces that a starting service looks at at a time.
const atOnce = 8

// reconcile takes over what an earlier service left: whole attachments are
// followed again, half-made ones are taken back, and so is what no record knows.
func (s *Service) reconcile(ctx context.Context) error {
	records, err := s.records.All(ctx)
	if err != nil {
		return fmt.Errorf("read the records of networks: %w", err)
	}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, r := range records {
		group.Go(func() error {
			a, unlock, err := s.lock(ctx, r.Value.Sandbox)
			if err != nil {
				return err
			}
			defer unlock()
			if err := s.takeOver(ctx, a, r.Value); err != nil {
				s.log.Error("the network of a sandbox is not taken over", "sandbox", r.Value.Sandbox, "error", err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	netspace.All(func(ns *netspace.Namespace) { s.takeUnrecorded(ctx, ns) })
	return nil
}

// recall takes an attachment over that is on record and not in memory, as when
// taking it over failed before. The caller holds a.op.
func (s *Service) recall(ctx context.Context, a *attachment) error {
	if a.record != nil {
		return nil
	}
	record, _, err := s.records.Get(ctx, bus.Token(a.sandbox))
	if bus.ReasonOf(err) == bus.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return s.takeOver(ctx, a, record)
}

// takeOver continues what a record says. The caller holds a.op.
func (s *Service) takeOver(ctx context.Context, a *attachment, record *netv1.Attachment) error {
	ns, err := reopen(record.Namespace)
	if errors.Is(err, netspace.ErrGone) {
		// It went with all that was in it.
		if err := s.forget(ctx, a.sandbox); err != nil {
			return err
		}
		s.event(ctx, a.sandbox, "detached", map[string]string{"reason": "its network namespace was gone when the service looked"})
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.claim(ns.ID, a.sandbox); err != nil {
		ns.Close()
		return err
	}
	if record.Network == nil {
		record.Network = &netv1.Network{}
	}
	if record.Policy == nil {
		record.Policy, _ = s.policy(nil)
	}
	a.ns, a.record = ns, record
	if record.State != stateAttached {
		was := record.State
		if err := s.dismantle(ctx, a); err != nil {
			return err
		}
		s.event(ctx, a.sandbox, "detached", map[string]string{"reason": "the service was interrupted while it was " + was})
		return nil
	}
	return s.resume(ctx, a)
}

// resume follows an attachment that an earlier service made. What of it is
// missing is made again.
func (s *Service) resume(ctx context.Context, a *attachment) error {
	var err error
	if a.events, err = a.ns.Subscribe(); err != nil {
		// It is on record or in the namespace still, and the next request tries again.
		s.unclaim(a.ns.ID, a.sandbox)
		a.ns.Close()
		a.ns, a.record = nil, nil
		return err
	}
	a.record.Revision = revisionAfter(a.record)
	if err := s.dropBroken(a); err != nil {
		s.log.Warn("what is left of a NIC is not taken back", "sandbox", a.sandbox, "error", err)
	}
	for _, nic := range a.record.Nics {
		if a.link(nic.Link) == nil {
			continue // it never came so far as to be told
		}
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

// revisionAfter is a revision that nobody was told yet: those who were told must take
// what comes for newer, and the record may be lost, or behind what they know. A
// namespace changes less often than once in a millisecond (quietTime).
func revisionAfter(r *netv1.Attachment) uint64 {
	return max(r.Revision+1, uint64(max(0, time.Since(r.Attached.AsTime()).Milliseconds())))
}

// reopen opens the namespace of a record again.
func reopen(n *netv1.Namespace) (*netspace.Namespace, error) {
	id := netspace.ID{Device: n.GetDevice(), Inode: n.GetInode()}
	if n.GetPid() > 0 {
		ns, err := netspace.Open(n.GetPid(), n.GetStartTime())
		if err == nil && ns.ID == id {
			return ns, nil
		}
		if err == nil {
			ns.Close()
		} else if !errors.Is(err, netspace.ErrProcessGone) && !errors.Is(err, netspace.ErrHost) {
			return nil, err
		}
	}
	return netspace.Find(id)
}

// retiredBefore are the former links with the index of one whose id says that it
// is not the first.
func retiredBefore(nic *netv1.Nic) []int32 {
	_, count, _ := strings.Cut(nic.Link, "-")
	n, err := strconv.Atoi(count)
	if err != nil {
		return nil
	}
	return slices.Repeat([]int32{nic.LinkIndex}, min(max(n-1, 0), 1000))
}

// takeUnrecorded looks for devices of this host's service in a namespace that no
// record names. Those that a VM has open get a record again; others are left from
// an attachment whose record is lost, and are taken back. It takes ns over.
func (s *Service) takeUnrecorded(ctx context.Context, ns *netspace.Namespace) {
	s.mu.Lock()
	_, known := s.namespaces[ns.ID]
	s.mu.Unlock()
	links, err := ns.Netlink().LinkList()
	if known || err != nil {
		ns.Close()
		return
	}
	found := &netv1.Attachment{Namespace: named(ns), Network: &netv1.Network{}, State: stateDetaching}
	for _, l := range links {
		token, attached, nic, ours := wire.Recover(l, s.aliasPrefix())
		sandbox, err := bus.Untoken(token)
		if !ours || err != nil {
			continue
		}
		found.Sandbox, found.Attached = sandbox, timestamppb.New(attached)
		found.Nics = append(found.Nics, nic)
		found.Retired = append(found.Retired, retiredBefore(nic)...)
		found.Policy = &netv1.Policy{Model: nic.Model, Queues: nic.Queues, AllowSpoofing: !s.cfg.SpoofProtection, DenySpoofing: s.cfg.SpoofProtection}
	}
	if len(found.Nics) == 0 {
		ns.Close()
		return
	}
	s.log.Warn("devices without a record were found in a network namespace", "sandbox", found.Sandbox, "nics", len(found.Nics))
	a, unlock, err := s.lock(ctx, found.Sandbox)
	if err != nil {
		ns.Close()
		return
	}
	defer unlock()
	if a.record != nil || s.claim(ns.ID, found.Sandbox) != nil {
		ns.Close()
		return
	}
	a.ns, a.record = ns, found
	// Nobody can tell whether a macvtap is open.
	if inUse(a) || found.Policy.Model == wire.ModelMacvtap && ns.PID != 0 {
		found.State = stateAttached
		err = s.resume(ctx, a)
	} else {
		err = s.dismantle(ctx, a)
	}
	if err != nil {
		s.log.Error("devices without a record are not taken over", "sandbox", found.Sandbox, "error", err)
	}
}
