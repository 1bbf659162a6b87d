// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"sync"

	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
)

// flights are the operations under way in this worker, by id.
type flights struct {
	mu  sync.Mutex // guards now
	now map[string]*flight
}

// flight is an operation under way. Its outcome may be read once done is closed.
type flight struct {
	method string
	req    proto.Message
	done   chan struct{}
	reply  proto.Message
	err    error
}

// repeatable runs act once per operation id: a repeat that comes while it runs
// waits for the same outcome, a later one gets it from the records. resumed says
// that a worker that died had begun the operation; act then goes on from what it
// finds.
func repeatable[Req, Resp proto.Message](ctx context.Context, w *Worker, method string, req Req, act func(ctx context.Context, resumed bool) (Resp, error)) (Resp, error) {
	var none Resp
	id := bus.OperationFrom(ctx)
	if id == "" { // a person with the nats CLI means every request
		return act(ctx, false)
	}
	f, first := w.flights.board(id, method, req)
	if !first {
		if f.method != method || !proto.Equal(f.req, req) {
			return none, bus.Errorf(bus.InvalidArgument, "operation id %s is in use for a different request (%s); make a new one for each action", id, f.method)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return none, bus.Errorf(bus.DeadlineExceeded, "%s: operation %s is still under way: %w", method, id, ctx.Err())
		}
		if f.err != nil {
			return none, f.err
		}
		return f.reply.(Resp), nil
	}
	// What those who joined hear of an act that panics.
	reply, err := none, error(bus.Errorf(bus.Internal, "%s: internal fault, see the daemon's log", method))
	defer func() { w.flights.land(id, f, reply, err) }()
	reply, err = recorded(ctx, w, method, req, act)
	return reply, err
}

// recorded is repeatable for an operation that is not under way here.
func recorded[Req, Resp proto.Message](ctx context.Context, w *Worker, method string, req Req, act func(ctx context.Context, resumed bool) (Resp, error)) (Resp, error) {
	var none Resp
	op, err := w.ops.Begin(ctx, method, req)
	if err != nil {
		return none, err
	}
	if op.State == bus.OperationDone {
		reply := none.ProtoReflect().New().Interface().(Resp)
		if err := op.Reply(reply); err != nil {
			return none, err
		}
		return reply, nil
	}
	reply, failure := act(ctx, op.State == bus.OperationPending)
	if err := op.Finish(ctx, reply, failure); err != nil {
		w.log.Warn("outcome of an operation not recorded", "method", method, "operation", op.ID, "error", err)
	}
	return reply, failure
}

// board joins the operation's flight, or makes one.
func (f *flights) board(id, method string, req proto.Message) (_ *flight, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if under := f.now[id]; under != nil {
		return under, false
	}
	under := &flight{method: method, req: req, done: make(chan struct{})}
	if f.now == nil {
		f.now = map[string]*flight{}
	}
	f.now[id] = under
	return under, true
}

// land tells the outcome to all who joined.
func (f *flights) land(id string, under *flight, reply proto.Message, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	under.reply, under.err = reply, err
	delete(f.now, id)
	close(under.done)
}
