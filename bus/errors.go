// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Reason is why a request failed, in the few words that programs branch on.
type Reason string

// The reasons. Each is also an HTTP-like code on the wire.
const (
	InvalidArgument    Reason = "INVALID_ARGUMENT"    // 400: the request itself is wrong
	NotFound           Reason = "NOT_FOUND"           // 404
	AlreadyExists      Reason = "ALREADY_EXISTS"      // 409
	FailedPrecondition Reason = "FAILED_PRECONDITION" // 412: right request, wrong state
	ResourceExhausted  Reason = "RESOURCE_EXHAUSTED"  // 429
	Internal           Reason = "INTERNAL"            // 500
	Unavailable        Reason = "UNAVAILABLE"         // 503: nobody there to do it
	DeadlineExceeded   Reason = "DEADLINE_EXCEEDED"   // 504: no answer in time, the outcome is unknown
)

var reasonCodes = map[Reason]int{
	InvalidArgument: 400, NotFound: 404, AlreadyExists: 409, FailedPrecondition: 412,
	ResourceExhausted: 429, Internal: 500, Unavailable: 503, DeadlineExceeded: 504,
}

var (
	// ErrNoDaemon says that no daemon answers on the run directory.
	ErrNoDaemon = errors.New("the bulkhead daemon is not running")
	// ErrConflict says that a record changed since it was read.
	ErrConflict = errors.New("the record changed since it was read")
	// ErrConnectionLost says that the connection broke while a call was waiting.
	ErrConnectionLost = errors.New("the connection to the bus was lost")
)

// Error is the one error that crosses the bus.
type Error struct {
	Reason    Reason
	Message   string // a sentence for a person
	Retryable bool   // the same request may succeed later
	Metadata  map[string]string

	cause error
}

// Error gives the sentence.
func (e *Error) Error() string { return e.Message }

// Unwrap gives what Errorf wrapped.
func (e *Error) Unwrap() error { return e.cause }

// With sets one metadata entry and returns e.
func (e *Error) With(key, value string) *Error {
	if e.Metadata == nil {
		e.Metadata = map[string]string{}
	}
	e.Metadata[key] = value
	return e
}

// Errorf makes an Error of a reason and a sentence; %w wraps as in fmt. Errors
// of reason Unavailable and ResourceExhausted are retryable.
func Errorf(reason Reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{
		Reason:    reason,
		Message:   err.Error(),
		Retryable: reason == Unavailable || reason == ResourceExhausted,
		cause:     err,
	}
}

// known maps the errors of the libraries below us to reasons.
var known = []struct {
	err    error
	reason Reason
}{
	{jetstream.ErrKeyNotFound, NotFound},
	{jetstream.ErrKeyDeleted, NotFound},
	{jetstream.ErrKeyRevisionMismatch, FailedPrecondition},
	{jetstream.ErrKeyExists, AlreadyExists},
	{jetstream.ErrInvalidKey, InvalidArgument},
	{ErrConflict, FailedPrecondition},
	{ErrNoDaemon, Unavailable},
	{ErrConnectionLost, Unavailable},
	{context.DeadlineExceeded, DeadlineExceeded},
	{context.Canceled, DeadlineExceeded},
	{nats.ErrTimeout, DeadlineExceeded},
	{nats.ErrNoResponders, Unavailable},
	{nats.ErrConnectionClosed, Unavailable},
	{nats.ErrConnectionReconnecting, Unavailable},
	{nats.ErrReconnectBufExceeded, Unavailable},
	{nats.ErrNoServers, Unavailable},
	{nats.ErrMaxPayload, InvalidArgument},
}

// ReasonOf tells the reason of any error: that of the outermost Error in it,
// or that of a well-known cause, else Internal. A cancelled context counts as a
// deadline: either way nobody knows how far the work got. It is empty for nil.
func ReasonOf(err error) Reason {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	for _, k := range known {
		if errors.Is(err, k.err) {
			return k.reason
		}
	}
	return Internal
}
