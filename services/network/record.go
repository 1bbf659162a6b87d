// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
)

// recordTime bounds one write of a record.
const recordTime = 5 * time.Second

// save writes the record. step names the moment, for tests.
func (s *Service) save(ctx context.Context, a *attachment, step string) error {
	if err := s.step(step); err != nil {
		return err
	}
	// A write that was begun is ended, also by a service that stops.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	_, err := s.records.Put(ctx, bus.Token(a.sandbox), a.record)
	a.behind = err != nil
	return err
}

func (s *Service) forget(ctx context.Context, sandbox string) error {
	if err := s.step("take-record"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	return s.records.Delete(ctx, bus.Token(sandbox))
}

// event tells of a change. The record is the truth, so an event that cannot be
// told is logged and nothing more.
func (s *Service) event(ctx context.Context, sandbox, name string, attributes map[string]string) {
	for k, v := range attributes {
		if v == "" {
			delete(attributes, k)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := bus.Publish(ctx, s.conn, &busv1.Event{Kind: "net", Id: sandbox, Event: name, Attributes: attributes})
	if err != nil {
		s.log.Warn("event not published", "sandbox", sandbox, "event", name, "error", err)
	}
}

// recordAgain is the pause between two attempts on a bus that is connected and yet
// refuses: its storage is coming up.
const recordAgain = time.Second

// keepRecorded writes the records anew that a bus which was away has not: it may have
// come back with another store. It runs until the service ends.
func (s *Service) keepRecorded() {
	back := s.conn.NATS().StatusChanged(nats.CONNECTED)
	defer s.conn.NATS().RemoveStatusListener(back)
	for {
		select {
		case _, open := <-back:
			if !open { // the connection is closed for good
				return
			}
		case <-s.life.Done():
			return
		}
		for err := s.recordMissing(s.life); err != nil && s.life.Err() == nil; err = s.recordMissing(s.life) {
			s.log.Warn("records of networks not written anew", "error", err)
			select {
			case <-time.After(recordAgain):
			case <-s.life.Done():
			}
		}
	}
}

func (s *Service) recordMissing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	keys, err := s.records.Keys(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, shown := range s.all() {
		errs = append(errs, s.recordOne(ctx, shown.Sandbox, slices.Contains(keys, bus.Token(shown.Sandbox))))
	}
	return errors.Join(errs...)
}

func (s *Service) recordOne(ctx context.Context, sandbox string, there bool) error {
	a, unlock, err := s.attached(ctx, sandbox)
	if bus.ReasonOf(err) == bus.NotFound {
		return nil // it went meanwhile
	}
	if err != nil {
		return err
	}
	defer unlock()
	if there && !a.behind {
		return nil
	}
	return s.save(ctx, a, "record-again")
}
