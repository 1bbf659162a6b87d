// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/scan"
)

// A change of a namespace comes in a dozen messages: a link arrives, is renamed,
// gets its address, is set up, gets a route. They are waited for until none came
// for quietTime, and no longer than patience, as the guest should know within a
// second.
const (
	quietTime = 30 * time.Millisecond
	patience  = 250 * time.Millisecond
)

// The kernel tells nobody that a socket begins to listen, so listeners are read
// at moments: at these times after a change of the namespace, as engines start
// their resolver about when they wire it; when somebody attaches again, inspects,
// or watches the sandbox alone; and by a slow clock for what listens at any other
// time.
var listenerTimes = []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second}

const listenerClock = 30 * time.Second

// startFollowing begins to follow what changes. The caller holds a.op.
func (s *Service) startFollowing(a *attachment) {
	ctx, cancel := context.WithCancel(s.life)
	a.follow, a.done = cancel, make(chan struct{})
	s.tasks.Go(func() {
		defer close(a.done)
		defer cancel()
		s.followNamespace(ctx, a)
	})
}

// stopFollowing waits until nothing follows any more.
func (a *attachment) stopFollowing() {
	if a.follow != nil {
		a.follow()
		<-a.done
		a.follow = nil
	}
	if a.events != nil {
		a.events.Close()
		a.events = nil
	}
}

// followNamespace runs until ctx ends. a.ns and a.events are its as long.
func (s *Service) followNamespace(ctx context.Context, a *attachment) {
	changes := make(chan struct{}, 1)
	ended := make(chan struct{})
	inner, cancel := context.WithCancel(ctx)
	done := make(chan struct{}, 2)
	ns, events := a.ns, a.events
	go func() {
		defer func() { done <- struct{}{} }()
		for events.Wait(inner) == nil {
			select {
			case changes <- struct{}{}:
			default:
			}
		}
		if inner.Err() == nil {
			s.log.Error("changes of a network namespace are no longer told; they are looked for by the clock", "sandbox", a.sandbox)
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		if ns.Ended(inner) {
			close(ended)
		}
	}()
	defer func() {
		cancel()
		<-done
		<-done
	}()

	attempt := 0
	clock := time.NewTimer(listenerTimes[0])
	defer clock.Stop()
	var gone <-chan struct{} = ended
	orphaned := false
	for {
		whole := false
		select {
		case <-ctx.Done():
			return
		case <-changes:
			settle(ctx, changes)
			whole, attempt = true, 0
		case <-a.poke:
		case <-clock.C:
			attempt++
			whole = attempt > len(listenerTimes) // now and then everything, should an event be lost
		case <-gone:
			gone, orphaned, whole = nil, true, true
		}
		clock.Reset(listenerWait(attempt))
		if s.look(ctx, a, whole, orphaned) {
			return
		}
	}
}

func listenerWait(attempt int) time.Duration {
	if attempt < len(listenerTimes) {
		return listenerTimes[attempt]
	}
	return listenerClock
}

// settle waits until the namespace has been quiet for a moment.
func settle(ctx context.Context, changes <-chan struct{}) {
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		quiet := time.NewTimer(quietTime)
		select {
		case <-changes:
			quiet.Stop()
		case <-quiet.C:
			return
		case <-end.C:
			quiet.Stop()
			return
		case <-ctx.Done():
			quiet.Stop()
			return
		}
	}
}

// look reads what may have changed. It tells whether there is nothing to follow
// any more.
func (s *Service) look(ctx context.Context, a *attachment, whole, orphaned bool) (over bool) {
	same, unlock, err := s.lock(ctx, a.sandbox)
	if err != nil {
		return ctx.Err() != nil
	}
	defer unlock()
	if same != a || a.record == nil {
		return true
	}
	if orphaned && s.bereaved(a) {
		return true
	}
	if whole || len(a.unmade) > 0 {
		err = s.refresh(ctx, a)
	} else {
		err = s.refreshListeners(ctx, a)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("changes of a network namespace are not followed", "sandbox", a.sandbox, "error", err)
	}
	return false
}

// refresh reads the namespace and tells what changed. The caller holds a.op.
func (s *Service) refresh(ctx context.Context, a *attachment) error {
	before := proto.CloneOf(a.record)
	if err := s.conform(ctx, a, false); err != nil {
		// What was read of a link that is not joined must not be told.
		a.record.Network = before.Network
		return err
	}
	return s.tell(ctx, a, before)
}

// refreshListeners reads only what listens.
func (s *Service) refreshListeners(ctx context.Context, a *attachment) error {
	found, err := scan.Listeners(a.ns)
	if err != nil {
		return err
	}
	if equal(found, a.record.Network.Listeners) {
		return nil
	}
	before := proto.CloneOf(a.record)
	a.record.Network.Listeners = found
	return s.tell(ctx, a, before)
}

// tell records, shows and publishes what changed since before.
func (s *Service) tell(ctx context.Context, a *attachment, before *netv1.Attachment) error {
	if proto.Equal(before, a.record) {
		if a.behind {
			return s.save(ctx, a, "changed-record")
		}
		return nil
	}
	a.record.Revision++
	if err := s.save(ctx, a, "changed-record"); err != nil {
		// The VM gets what is in the namespace all the same; the record is written
		// at the next look, and a service that starts reads the namespace anyway.
		s.log.Warn("record of a network not written", "sandbox", a.sandbox, "error", err)
	}
	s.show(a)
	s.feed.changed(a.sandbox)
	came := missing(a.record.Network.Links, before.Network.Links)
	went := missing(before.Network.Links, a.record.Network.Links)
	for _, l := range came {
		s.event(ctx, a.sandbox, "link_added", linkAttributes(l, a.record.Revision))
	}
	for _, l := range went {
		s.event(ctx, a.sandbox, "link_removed", linkAttributes(l, a.record.Revision))
	}
	if what := difference(before.Network, a.record.Network); what != "" {
		s.event(ctx, a.sandbox, "changed", map[string]string{"what": what})
	}
	return nil
}

// missing are the links that others does not have.
func missing(links, others []*netv1.Link) []*netv1.Link {
	return slices.DeleteFunc(slices.Clone(links), func(l *netv1.Link) bool {
		return slices.ContainsFunc(others, func(o *netv1.Link) bool { return o.Id == l.Id })
	})
}

// inspect answers with what is there now.
func (s *Service) inspect(ctx context.Context, req *netv1.InspectRequest) (*netv1.InspectReply, error) {
	a, unlock, err := s.attached(ctx, req.Sandbox)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.refresh(ctx, a); err != nil {
		return nil, err
	}
	return &netv1.InspectReply{Attachment: proto.CloneOf(a.record)}, nil
}

// list answers from memory and touches no namespace.
func (s *Service) list(_ context.Context, req *netv1.ListRequest) (*netv1.ListReply, error) {
	all := s.all()
	slices.SortFunc(all, func(a, b *netv1.Attachment) int {
		return cmp.Or(a.Attached.AsTime().Compare(b.Attached.AsTime()), cmp.Compare(a.Sandbox, b.Sandbox))
	})
	if req.After != "" {
		i := slices.IndexFunc(all, func(a *netv1.Attachment) bool { return a.Sandbox == req.After })
		if i < 0 {
			return nil, bus.Errorf(bus.NotFound, "sandbox %q, after which to list, is attached to no network any more; begin anew, without \"after\"", req.After)
		}
		all = all[i+1:]
	}
	reply, part := &netv1.ListReply{Attachments: all}, bus.Part{}
	for i, a := range all {
		if !part.Holds(a) {
			reply.Attachments, reply.Next = all[:i], all[i-1].Sandbox
			break
		}
	}
	return reply, nil
}

// attached takes the lock of a sandbox that is attached.
func (s *Service) attached(ctx context.Context, sandbox string) (*attachment, func(), error) {
	a, unlock, err := s.lock(ctx, sandbox)
	if err != nil {
		return nil, nil, err
	}
	if a.record == nil || a.record.State != stateAttached {
		unlock()
		return nil, nil, bus.Errorf(bus.NotFound, "sandbox %q is attached to no network", sandbox)
	}
	return a, unlock, nil
}
