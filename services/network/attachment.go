// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// The states of a record.
const (
	stateAttaching = "attaching"
	stateAttached  = "attached"
	stateDetaching = "detaching"
)

// attachment is a sandbox wired to a namespace, or about to be.
type attachment struct {
	sandbox string
	op      chan struct{} // a lock that a context can give up: one operation at a time

	// Guarded by op.
	ns     *netspace.Namespace
	events *netspace.Events
	record *netv1.Attachment // nil while nothing was made
	// unjoined are NICs on record that are not, or not yet whole.
	unjoined map[*netv1.Nic]bool
	// unmade are links that could not be joined, and when they are tried again.
	unmade   map[string]*unmade
	retrying bool      // somebody tries to take it back
	behind   bool      // the bucket has an older record
	sought   time.Time // when a dial last had the listeners read
	follow   context.CancelFunc
	done     chan struct{} // closed when the follower has ended

	poke chan struct{} // capacity 1: look at the listeners

	shown *netv1.Attachment // guarded by Service.mu: what list and inspect tell; nil unless attached
}

// lock takes the attachment of a sandbox, which is made if it is not there.
func (s *Service) lock(ctx context.Context, sandbox string) (*attachment, func(), error) {
	for {
		s.mu.Lock()
		a := s.attachments[sandbox]
		if a == nil {
			a = &attachment{sandbox: sandbox, op: make(chan struct{}, 1), poke: make(chan struct{}, 1), unjoined: map[*netv1.Nic]bool{}, unmade: map[string]*unmade{}}
			s.attachments[sandbox] = a
		}
		s.mu.Unlock()
		select {
		case a.op <- struct{}{}:
		case <-ctx.Done():
			return nil, nil, bus.Errorf(bus.DeadlineExceeded, "sandbox %s: another request on its network takes too long: %w", sandbox, ctx.Err())
		}
		s.mu.Lock()
		current := s.attachments[sandbox] == a
		s.mu.Unlock()
		if !current { // it went while we waited
			<-a.op
			continue
		}
		return a, func() { s.unlock(a) }, nil
	}
}

// unlock drops an attachment that nothing was made for.
func (s *Service) unlock(a *attachment) {
	s.mu.Lock()
	if a.record == nil {
		delete(s.attachments, a.sandbox)
	}
	s.mu.Unlock()
	<-a.op
}

// show makes the record what readers see.
func (s *Service) show(a *attachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.shown = proto.CloneOf(a.record)
}

// claim notes that a sandbox has a namespace; another one's is refused.
func (s *Service) claim(id netspace.ID, sandbox string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other, taken := s.namespaces[id]; taken && other != sandbox {
		return bus.Errorf(bus.FailedPrecondition, "the network namespace already belongs to sandbox %s: containers that share a network are containers of one VM", other).With("sandbox", other)
	}
	s.namespaces[id] = sandbox
	return nil
}

func (s *Service) unclaim(id netspace.ID, sandbox string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.namespaces[id] == sandbox {
		delete(s.namespaces, id)
	}
}

// all are the attachments as readers see them.
func (s *Service) all() []*netv1.Attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	shown := make([]*netv1.Attachment, 0, len(s.attachments))
	for _, a := range s.attachments {
		if a.shown != nil {
			shown = append(shown, a.shown)
		}
	}
	return shown
}
