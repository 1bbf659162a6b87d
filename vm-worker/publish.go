// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	vmv1 "bulkhead/proto/vm/v1"
)

const (
	// publishTime bounds one write to a bucket.
	publishTime = 3 * time.Second
	// publishRetry is the pause between two attempts on a bus that is connected
	// and yet refuses: its storage is coming up.
	publishRetry = 500 * time.Millisecond
)

// publishContext is for writes that must not end with the request that caused
// them.
func publishContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), publishTime)
}

// fellBehind notes that the buckets no longer agree with the directories.
func (s *store) fellBehind() {
	select {
	case s.behind <- struct{}{}:
	default:
	}
}

// keepPublished publishes everything anew after something could not be, once the
// bus is back. It runs until the worker stops.
func (w *Worker) keepPublished() {
	connected := w.conn.NATS().StatusChanged(nats.CONNECTED)
	defer w.conn.NATS().RemoveStatusListener(connected)
	for {
		select {
		case <-w.store.behind:
		case <-w.stopping:
			return
		}
		for !w.conn.NATS().IsConnected() {
			select {
			case <-connected:
			case <-w.stopping:
				return
			}
		}
		if err := w.publishAll(context.Background()); err != nil {
			w.log.Warn("records not published anew", "error", err)
			w.store.fellBehind()
		}
		select {
		case <-time.After(publishRetry):
		case <-w.stopping:
			return
		}
	}
}

// publishAll writes every record anew and withdraws those that speak of nothing.
// Records that still cannot be published are noted as before.
func (w *Worker) publishAll(ctx context.Context) error {
	for _, c := range w.containerList() {
		if err := c.set(ctx, func(*vmv1.Container) {}); err != nil {
			w.log.Error("container record not written", "container", c.rec.Ref.Id, "error", err)
		}
	}
	for _, s := range w.sandboxList() {
		if err := s.update(ctx, func(*vmv1.Sandbox) {}); err != nil {
			w.log.Error("sandbox record not written", "sandbox", s.id, "error", err)
		}
	}
	return w.sweepBuckets(ctx)
}

// sweepBuckets withdraws published records that speak of nothing.
func (w *Worker) sweepBuckets(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	keys, err := w.store.containers.Keys(ctx)
	if err != nil {
		return err
	}
	ids, err := w.store.sandboxes.Keys(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock() // nothing may come into being between the look and the withdrawal
	defer w.mu.Unlock()
	for _, k := range keys {
		if _, ok := w.containers[k]; !ok {
			if err := w.store.containers.Delete(ctx, k); err != nil {
				return err
			}
		}
	}
	for _, id := range ids {
		if _, ok := w.sandboxes[id]; !ok {
			if err := w.store.sandboxes.Delete(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}
