// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The KV buckets of a host.
const (
	BucketContainers = "containers" // bulkhead.vm.v1.Container by ContainerKey
	BucketSandboxes  = "sandboxes"  // bulkhead.vm.v1.Sandbox by Token(id)
	BucketNetworks   = "networks"   // bulkhead.net.v1.Attachment by Token(sandbox)
	BucketOperations = "operations" // operation records by operation id
)

// EventStream keeps the lifecycle events of the last day.
const EventStream = "EV"

const (
	recordHistory     = 5 // what "nats kv history" shows of a record that is there
	operationLife     = 10 * time.Minute
	eventLife         = 24 * time.Hour
	eventBytes        = 64 << 20
	eventDuplicateFor = 2 * time.Minute
)

// goneLife is how long a bucket tells that a record went. Tests shorten it.
var goneLife = 10 * time.Minute

// CreateState makes the buckets and the event stream where they are missing and
// brings their settings up to date. The server does this as it starts.
func CreateState(ctx context.Context, c *Conn) error {
	buckets := []jetstream.KeyValueConfig{
		{Bucket: BucketContainers, Description: "containers, as protojson bulkhead.vm.v1.Container", History: recordHistory, LimitMarkerTTL: goneLife},
		{Bucket: BucketSandboxes, Description: "virtual machines, as protojson bulkhead.vm.v1.Sandbox", History: recordHistory, LimitMarkerTTL: goneLife},
		{Bucket: BucketNetworks, Description: "networks of virtual machines, as protojson bulkhead.net.v1.Attachment", History: recordHistory, LimitMarkerTTL: goneLife},
		// History 1: with more, the server stretches a TTL to its marker's.
		{Bucket: BucketOperations, Description: "outcomes of operations, kept for ten minutes", History: 1, TTL: operationLife},
	}
	for _, cfg := range buckets {
		if _, err := c.js.CreateOrUpdateKeyValue(ctx, cfg); err != nil {
			return fmt.Errorf("create bucket %s: %w", cfg.Bucket, err)
		}
		if err := forgetAgain(ctx, c, cfg.Bucket); err != nil {
			return err
		}
	}
	_, err := c.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:        EventStream,
		Description: "lifecycle events, written by the host only, as protojson bulkhead.bus.v1.Event",
		Subjects:    []string{"ev.>"},
		Discard:     jetstream.DiscardOld,
		MaxAge:      eventLife,
		MaxBytes:    eventBytes,
		Duplicates:  eventDuplicateFor,
		// The server syncs every write of the records; events need not wait for the disk.
		PersistMode: jetstream.AsyncPersistMode,
	})
	if err != nil {
		return fmt.Errorf("create stream %s: %w", EventStream, err)
	}
	return nil
}

// stateError gives the errors of a bucket our reasons and a sentence.
func stateError(bucket, verb, key string, err error) error {
	what := fmt.Sprintf("%s %s/%s", verb, bucket, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
		return Errorf(NotFound, "%s: no such record: %w", what, err)
	case errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return Errorf(FailedPrecondition, "%s: %w: %w", what, ErrConflict, err)
	case errors.Is(err, jetstream.ErrKeyExists):
		return Errorf(AlreadyExists, "%s: the record exists: %w", what, err)
	}
	return Errorf(ReasonOf(err), "%s: %w", what, err)
}
