// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	busv1 "bulkhead/proto/bus/v1"
)

// OperationState is how far an operation got.
type OperationState string

// The states of an operation.
const (
	OperationNew     OperationState = "new"     // this Begin reserved it: act
	OperationPending OperationState = "pending" // somebody began it and has not finished: running, or died doing it
	OperationDone    OperationState = "done"    // Reply tells how it ended
)

// Operations remembers, for ten minutes, which operation ids were acted on and
// how they ended, so that a repeated request does not act twice.
//
// A method whose effect can be found again (create, start, delete: their
// records hold the operation id) treats a pending operation as its own and goes
// on from what it finds. A method whose effect cannot (kill) must not act on a
// pending one; Once is that rule, at most once, in one call.
type Operations struct{ kv jetstream.KeyValue }

// Operation is one reserved or repeated operation.
type Operation struct {
	ID    string
	State OperationState // as Begin found it

	kv     jetstream.KeyValue
	record operationRecord
	rev    uint64
}

// operationRecord is what the bucket holds.
type operationRecord struct {
	Method  string          `json:"method"`
	Request string          `json:"requestDigest"`
	State   OperationState  `json:"state"`
	Begun   time.Time       `json:"begun"`
	Ended   *time.Time      `json:"ended,omitempty"`
	Reply   json.RawMessage `json:"reply,omitempty"`
	Problem json.RawMessage `json:"problem,omitempty"`
}

// OpenOperations opens the host's operation records.
func OpenOperations(ctx context.Context, c *Conn) (*Operations, error) {
	kv, err := c.js.KeyValue(ctx, BucketOperations)
	if err != nil {
		return nil, Errorf(ReasonOf(err), "open bucket %s: %w", BucketOperations, err)
	}
	return &Operations{kv: kv}, nil
}

// Begin reserves the operation of ctx for a method and a request, or tells what
// became of it. A request without an operation id gets a new one: a person
// with the nats CLI means every request. An id that was used for another
// request is InvalidArgument.
func (o *Operations) Begin(ctx context.Context, method string, req proto.Message) (*Operation, error) {
	op := &Operation{ID: OperationFrom(ctx), State: OperationNew, kv: o.kv}
	if op.ID == "" {
		op.ID = NewOperationID()
	}
	digest, err := requestDigest(method, req)
	if err != nil {
		return nil, err
	}
	op.record = operationRecord{Method: method, Request: digest, State: OperationPending, Begun: time.Now().UTC()}
	body, err := json.Marshal(op.record)
	if err != nil {
		return nil, fmt.Errorf("record operation %s: %w", op.ID, err)
	}
	op.rev, err = o.kv.Create(ctx, op.ID, body)
	if err == nil {
		return op, nil
	}
	if !errors.Is(err, jetstream.ErrKeyExists) {
		return nil, stateError(BucketOperations, "begin", op.ID, err)
	}
	entry, err := o.kv.Get(ctx, op.ID)
	if err != nil {
		return nil, stateError(BucketOperations, "get", op.ID, err)
	}
	op.record = operationRecord{}
	if err := json.Unmarshal(entry.Value(), &op.record); err != nil {
		return nil, fmt.Errorf("record %s/%s is damaged: %w", BucketOperations, op.ID, err)
	}
	if op.record.Request != digest {
		return nil, Errorf(InvalidArgument, "operation id %s was already used for a different request (%s); make a new one for each action", op.ID, op.record.Method)
	}
	op.State, op.rev = op.record.State, entry.Revision()
	return op, nil
}

// Reply gives how a done operation ended: it fills reply, or returns the error.
func (op *Operation) Reply(reply proto.Message) error {
	if op.record.State != OperationDone {
		return Errorf(Internal, "operation %s has no reply: it is %s", op.ID, op.record.State)
	}
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
	if op.record.Problem != nil {
		p := &busv1.Problem{}
		if err := lenient.Unmarshal(op.record.Problem, p); err != nil {
			return fmt.Errorf("the outcome of operation %s is damaged: %w", op.ID, err)
		}
		return fromProblem(p)
	}
	if err := lenient.Unmarshal(op.record.Reply, reply); err != nil {
		return fmt.Errorf("the outcome of operation %s is damaged: %w", op.ID, err)
	}
	return nil
}

// Finish records how the operation ended, for repeats: the reply, or the
// failure when it is not nil. It works on after the caller has gone.
func (op *Operation) Finish(ctx context.Context, reply proto.Message, failure error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), defaultDialTimeout)
	defer cancel()
	now := time.Now().UTC()
	record := op.record
	record.State, record.Ended = OperationDone, &now
	var err error
	if failure != nil {
		record.Problem, err = protojson.Marshal(toProblem(failure))
	} else {
		record.Reply, err = protojson.Marshal(reply)
	}
	if err != nil {
		return fmt.Errorf("record the outcome of operation %s: %w", op.ID, err)
	}
	body, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("record the outcome of operation %s: %w", op.ID, err)
	}
	if op.rev, err = op.kv.Update(ctx, op.ID, body, op.rev); err != nil {
		return stateError(BucketOperations, "finish", op.ID, err)
	}
	op.record = record
	return nil
}

// Abandon forgets the operation, when nothing was done and the same id may try
// again.
func (op *Operation) Abandon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), defaultDialTimeout)
	defer cancel()
	if err := op.kv.Purge(ctx, op.ID, jetstream.LastRevision(op.rev)); err != nil {
		return stateError(BucketOperations, "abandon", op.ID, err)
	}
	return nil
}

// Once runs act at most once per operation id. A repeat after the end gets the
// recorded outcome; a repeat before it, or after act died half way, is
// Unavailable with the metadata outcome=unknown.
func Once[Req, Resp proto.Message](ctx context.Context, o *Operations, method string, req Req, act func(context.Context) (Resp, error)) (Resp, error) {
	var none Resp
	op, err := o.Begin(ctx, method, req)
	if err != nil {
		return none, err
	}
	switch op.State {
	case OperationDone:
		reply := newMessage[Resp]()
		if err := op.Reply(reply); err != nil {
			return none, err
		}
		return reply, nil
	case OperationPending:
		return none, Errorf(Unavailable, "%s: operation %s was begun and has not ended, so the outcome is unknown; look at the state before acting again", method, op.ID).With("outcome", "unknown")
	}
	reply, failure := act(ctx)
	if err := op.Finish(ctx, reply, failure); err != nil && failure == nil {
		return none, fmt.Errorf("%s was done, but: %w", method, err)
	}
	return reply, failure
}

func requestDigest(method string, req proto.Message) (string, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return "", Errorf(InvalidArgument, "encode the request of %s: %w", method, err)
	}
	sum := sha256.Sum256(append([]byte(method+"\x00"), body...))
	return hex.EncodeToString(sum[:]), nil
}
