// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/oklog/ulid/v2"
)

type operationKey struct{}

// NewOperationID makes the id of one user action: a ULID, made once by whoever
// acts for the user and kept through every retry.
func NewOperationID() string { return ulid.Make().String() }

// WithOperation returns a context whose calls carry the operation id.
func WithOperation(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, operationKey{}, id)
}

// OperationFrom gives the operation id of the context, or "".
func OperationFrom(ctx context.Context) string {
	id, _ := ctx.Value(operationKey{}).(string)
	return id
}

// operationOf reads the operation id of a request. What is not a ULID is refused,
// because the id becomes a KV key and part of records.
func operationOf(h nats.Header) (string, error) {
	id := headerValue(h, HeaderOperation)
	if id == "" {
		return "", nil
	}
	if _, err := ulid.ParseStrict(id); err != nil {
		return "", Errorf(InvalidArgument, "header %s: %s is not a ULID", HeaderOperation, cleanText(id, 64))
	}
	return id, nil
}

// deadlineOf reads when the caller stops waiting: the absolute header of the
// host, the relative one that guests get, or the default.
func deadlineOf(h nats.Header, now time.Time) (time.Time, error) {
	if text := headerValue(h, HeaderDeadline); text != "" {
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return time.Time{}, Errorf(InvalidArgument, "header %s: %s is not an RFC 3339 time", HeaderDeadline, cleanText(text, 64))
		}
		return at, nil
	}
	if text := headerValue(h, HeaderTimeout); text != "" {
		d, err := time.ParseDuration(text + "ms")
		if err != nil {
			return time.Time{}, Errorf(InvalidArgument, "header %s: %s is not a number of milliseconds", HeaderTimeout, cleanText(text, 64))
		}
		return now.Add(d), nil
	}
	return now.Add(DefaultTimeout), nil
}
