// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"time"

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
