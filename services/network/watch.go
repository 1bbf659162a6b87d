// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/nats-io/nuid"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
)

// feed numbers changes of attachments for those that watch.
type feed struct {
	mu       sync.Mutex        // guards what follows
	epoch    string            // of this run
	revision uint64            // of the last change
	at       map[string]uint64 // the last change of each sandbox that is attached
	gone     map[string]uint64 // when each that is not was detached
	wake     chan struct{}     // closed at the next change
	closed   bool
}

// maxGone bounds what is remembered of those that went: beyond it, everything
// is told anew, by a new epoch.
const maxGone = 4096

func newFeed() *feed {
	return &feed{epoch: nuid.Next(), at: map[string]uint64{}, gone: map[string]uint64{}, wake: make(chan struct{})}
}

func (f *feed) changed(sandbox string) {
	f.note(func() {
		f.at[sandbox] = f.revision
		delete(f.gone, sandbox)
	})
}

func (f *feed) detached(sandbox string) {
	f.note(func() {
		if _, known := f.at[sandbox]; !known {
			return // it was never told of
		}
		delete(f.at, sandbox)
		f.gone[sandbox] = f.revision
		if len(f.gone) > maxGone {
			f.gone, f.epoch = map[string]uint64{}, nuid.Next()
		}
	})
}

func (f *feed) note(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revision++
	change()
	if !f.closed {
		close(f.wake)
		f.wake = make(chan struct{})
	}
}

// close ends all waits, and those to come.
func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.wake)
	}
}

// change is the last one of a sandbox.
type change struct {
	sandbox string
	at      uint64
}

// since tells what changed after a revision of an epoch, or everything to those
// that know another epoch. wake is closed at the next change.
func (f *feed) since(epoch string, after uint64, sandbox string) (reply *netv1.WatchReply, changed []change, news bool, wake <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	reply = &netv1.WatchReply{Epoch: f.epoch, Revision: f.revision}
	anew := epoch != f.epoch
	for id, at := range f.at {
		if (anew || at > after) && (sandbox == "" || id == sandbox) {
			changed = append(changed, change{id, at})
		}
	}
	slices.SortFunc(changed, func(a, b change) int { return cmp.Compare(a.at, b.at) })
	for id, at := range f.gone {
		if !anew && at > after && (sandbox == "" || id == sandbox) {
			reply.Detached = append(reply.Detached, id)
		}
	}
	if _, there := f.at[sandbox]; anew && sandbox != "" && !there {
		reply.Detached = append(reply.Detached, sandbox)
	}
	return reply, changed, anew || f.closed || len(changed)+len(reply.Detached) > 0, f.wake
}

// watch waits for a change. The caller's deadline is no error: then nothing
// changed.
func (s *Service) watch(ctx context.Context, req *netv1.WatchRequest) (*netv1.WatchReply, error) {
	s.pokeListeners(req.Sandbox)
	for {
		reply, changed, news, wake := s.feed.since(req.Epoch, req.After, req.Sandbox)
		if news {
			s.fill(reply, changed)
			return reply, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return reply, nil
		}
	}
}

// fill tells of what changed, in that order, as far as it fits.
func (s *Service) fill(reply *netv1.WatchReply, changed []change) {
	var part bus.Part
	for i, c := range changed {
		shown := s.shown(c.sandbox)
		switch {
		case shown == nil:
		case part.Holds(shown):
			reply.Attachments = append(reply.Attachments, shown)
		default:
			reply.More, reply.Revision = true, changed[i-1].at
			return
		}
	}
}

// shown is what others see of a sandbox's attachment; nil when there is none.
func (s *Service) shown(sandbox string) *netv1.Attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.attachments[sandbox]; a != nil {
		return a.shown
	}
	return nil
}

// pokeListeners has the listeners of a sandbox read again. Whoever watches all
// is told by the moments of listenerTimes: hundreds of namespaces are not read
// for each change of one.
func (s *Service) pokeListeners(sandbox string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.attachments[sandbox]; a != nil {
		select {
		case a.poke <- struct{}{}:
		default:
		}
	}
}
