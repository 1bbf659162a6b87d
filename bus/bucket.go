// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// modifyAttempts bounds the compare-and-swap loop of Modify.
const modifyAttempts = 64

// Bucket is a KV bucket of one message type, stored as protojson so that
// "nats kv get" is readable. It is a cache of truth that can be found again: an
// absent key never proves that a container does not exist.
type Bucket[T proto.Message] struct {
	name string
	kv   jetstream.KeyValue
}

// Entry is a record and where it stands.
type Entry[T proto.Message] struct {
	Key      string
	Value    T // the zero T when Deleted
	Revision uint64
	Deleted  bool // only from Watch
}

// OpenBucket opens a bucket that CreateState made:
//
//	containers, err := bus.OpenBucket[*vmv1.Container](ctx, c, bus.BucketContainers)
func OpenBucket[T proto.Message](ctx context.Context, c *Conn, name string) (*Bucket[T], error) {
	kv, err := c.js.KeyValue(ctx, name)
	if err != nil {
		return nil, Errorf(ReasonOf(err), "open bucket %s: %w", name, err)
	}
	return &Bucket[T]{name: name, kv: kv}, nil
}

// Get reads a record and its revision. Its absence is NotFound.
func (b *Bucket[T]) Get(ctx context.Context, key string) (T, uint64, error) {
	var none T
	e, err := b.kv.Get(ctx, key)
	if err != nil {
		return none, 0, stateError(b.name, "get", key, err)
	}
	v, err := b.decode(e)
	if err != nil {
		return none, 0, err
	}
	return v, e.Revision(), nil
}

// Create writes a record that must not exist; else AlreadyExists.
func (b *Bucket[T]) Create(ctx context.Context, key string, v T) (uint64, error) {
	return b.write(key, "create", v, func(body []byte) (uint64, error) { return b.kv.Create(ctx, key, body) })
}

// Update writes a record that must still be at revision; else ErrConflict,
// which is FailedPrecondition.
func (b *Bucket[T]) Update(ctx context.Context, key string, v T, revision uint64) (uint64, error) {
	return b.write(key, "update", v, func(body []byte) (uint64, error) { return b.kv.Update(ctx, key, body, revision) })
}

// Put writes a record whatever was there.
func (b *Bucket[T]) Put(ctx context.Context, key string, v T) (uint64, error) {
	return b.write(key, "put", v, func(body []byte) (uint64, error) { return b.kv.Put(ctx, key, body) })
}

// Modify reads a record, lets change edit it, and writes it back, again from
// the start when somebody else was faster. An error of change ends it and is
// returned as it is.
func (b *Bucket[T]) Modify(ctx context.Context, key string, change func(T) error) (T, error) {
	var none T
	for range modifyAttempts {
		v, revision, err := b.Get(ctx, key)
		if err != nil {
			return none, err
		}
		if err := change(v); err != nil {
			return none, err
		}
		_, err = b.Update(ctx, key, v, revision)
		if err == nil {
			return v, nil
		}
		if !errors.Is(err, ErrConflict) {
			return none, err
		}
	}
	return none, Errorf(Unavailable, "modify %s/%s: %w %d times in a row", b.name, key, ErrConflict, modifyAttempts)
}

// Delete removes a record and its history: a host runs any number of containers, and the store
// is in memory. That it went is told for another goneLife. An absent one is no error.
func (b *Bucket[T]) Delete(ctx context.Context, key string) error {
	if err := b.kv.Purge(ctx, key, jetstream.PurgeTTL(goneLife)); err != nil {
		return stateError(b.name, "delete", key, err)
	}
	return nil
}

// Keys lists the keys of existing records.
func (b *Bucket[T]) Keys(ctx context.Context) ([]string, error) {
	keys, err := b.kv.Keys(ctx)
	if errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, nil
	}
	if err != nil {
		return nil, stateError(b.name, "list", "*", err)
	}
	return keys, nil
}

// All reads every existing record.
func (b *Bucket[T]) All(ctx context.Context) ([]Entry[T], error) {
	w, err := b.kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return nil, stateError(b.name, "read", "*", err)
	}
	defer w.Stop() //nolint:errcheck // the watch ends with its subscription either way
	var all []Entry[T]
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return nil, Errorf(Unavailable, "read %s: %w", b.name, ErrConnectionLost)
			}
			if e == nil { // the end of what exists
				return all, nil
			}
			v, err := b.decode(e)
			if err != nil {
				return nil, err
			}
			all = append(all, Entry[T]{Key: e.Key(), Value: v, Revision: e.Revision()})
		case <-ctx.Done():
			return nil, stateError(b.name, "read", "*", ctx.Err())
		}
	}
}

// Watch calls fn with each record under pattern ("" is all), first those that
// exist, then every change, until ctx ends, which is not an error. Records that
// do not decode are skipped.
func (b *Bucket[T]) Watch(ctx context.Context, pattern string, fn func(Entry[T])) error {
	if pattern == "" {
		pattern = ">"
	}
	w, err := b.kv.Watch(ctx, pattern)
	if err != nil {
		return stateError(b.name, "watch", pattern, err)
	}
	defer w.Stop() //nolint:errcheck // the watch ends with its subscription either way
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return Errorf(Unavailable, "watch %s: %w", b.name, ErrConnectionLost)
			}
			if e == nil {
				continue
			}
			entry := Entry[T]{Key: e.Key(), Revision: e.Revision(), Deleted: e.Operation() != jetstream.KeyValuePut}
			if !entry.Deleted {
				if entry.Value, err = b.decode(e); err != nil {
					continue
				}
			}
			fn(entry)
		case <-ctx.Done():
			return nil
		}
	}
}

func (b *Bucket[T]) write(key, verb string, v T, put func([]byte) (uint64, error)) (uint64, error) {
	body, err := protojson.Marshal(v)
	if err != nil {
		return 0, Errorf(InvalidArgument, "%s %s/%s: %w", verb, b.name, key, err)
	}
	revision, err := put(body)
	if err != nil {
		return 0, stateError(b.name, verb, key, err)
	}
	return revision, nil
}

// decode reads a stored record. Unknown fields are those of a newer daemon that
// ran here before.
func (b *Bucket[T]) decode(e jetstream.KeyValueEntry) (T, error) {
	v := newMessage[T]()
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Value(), v); err != nil {
		var none T
		return none, fmt.Errorf("record %s/%s is damaged: %w", b.name, e.Key(), err)
	}
	return v, nil
}
