// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// replyMargin is kept of a deadline so that a handler that runs out of time can
// still say so before its caller stops listening.
const replyMargin = 50 * time.Millisecond

// dispatcher runs requests: each in its own goroutine, bounded in number,
// within its deadline. Service and AgentServer are built on it.
type dispatcher struct {
	nc   *nats.Conn
	log  hclog.Logger
	name string // for sentences: "service vm"
	errs errorHeaders

	slots   chan struct{}  // one taken per running request
	running sync.WaitGroup // requests being run
	base    context.Context
	abort   context.CancelFunc // ends base: handlers still running must give up

	mu        sync.Mutex // guards endpoints and stopped
	endpoints []*endpoint
	stopped   bool
}

// endpoint is one method.
type endpoint struct {
	name, subject  string
	request, reply protoreflect.FullName
	run            func(ctx context.Context, enc encoding, body []byte) (proto.Message, error)
	subscription   *nats.Subscription
	drained        chan struct{} // closed when the last message was dispatched
	stats          stats
}

func newDispatcher(ctx context.Context, nc *nats.Conn, name string, errs errorHeaders, log hclog.Logger, limit int) *dispatcher {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	// Handlers outlive the context that made the service: Stop lets them answer,
	// and cuts them only when its own patience ends.
	base, abort := context.WithCancel(context.WithoutCancel(ctx))
	return &dispatcher{nc: nc, log: log, name: name, errs: errs, slots: make(chan struct{}, limit), base: base, abort: abort}
}

// handle subscribes a method.
func handle[Req, Resp proto.Message](d *dispatcher, queue, subject, method string, fn func(context.Context, Req) (Resp, error)) error {
	ep := &endpoint{
		name: method, subject: subject,
		request: newMessage[Req]().ProtoReflect().Descriptor().FullName(),
		reply:   newMessage[Resp]().ProtoReflect().Descriptor().FullName(),
		drained: make(chan struct{}),
	}
	ep.run = func(ctx context.Context, enc encoding, body []byte) (proto.Message, error) {
		req := newMessage[Req]()
		if err := unmarshal(enc, body, req); err != nil {
			return nil, Errorf(InvalidArgument, "%s: %w", subject, err)
		}
		resp, err := fn(ctx, req)
		if err != nil {
			return nil, err
		}
		return resp, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return fmt.Errorf("handle %s: %s has stopped", subject, d.name)
	}
	for _, other := range d.endpoints {
		if other.name == method {
			return fmt.Errorf("handle %s: the method is already handled", subject)
		}
	}
	sub, err := d.nc.QueueSubscribe(subject, queue, func(msg *nats.Msg) { d.accept(ep, msg) })
	if err != nil {
		return fmt.Errorf("handle %s: %w", subject, err)
	}
	sub.SetClosedHandler(func(string) { close(ep.drained) })
	ep.subscription = sub
	d.endpoints = append(d.endpoints, ep)
	return nil
}

// accept takes one request from the subscription's goroutine, which is serial,
// and gives it its own.
func (d *dispatcher) accept(ep *endpoint, msg *nats.Msg) {
	// A reply subject outside the inboxes would make this service publish, with
	// its own rights, where the caller may not.
	if !strings.HasPrefix(msg.Reply, inboxRoot) && !strings.HasPrefix(msg.Reply, "_R_.") {
		d.log.Warn("request ignored: its reply subject is not an inbox", "subject", msg.Subject, "reply", cleanText(msg.Reply, 128))
		return
	}
	select {
	case d.slots <- struct{}{}:
	default:
		err := Errorf(ResourceExhausted, "%s already runs %d requests; try again", d.name, cap(d.slots))
		ep.stats.add(0, err)
		d.respond(msg, nil, err)
		return
	}
	d.running.Go(func() {
		defer func() { <-d.slots }()
		begin := time.Now()
		resp, err := d.serve(ep, msg, begin)
		ep.stats.add(time.Since(begin), err)
		d.respond(msg, resp, err)
	})
}

// serve checks the envelope and runs the handler.
func (d *dispatcher) serve(ep *endpoint, msg *nats.Msg, now time.Time) (resp proto.Message, err error) {
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("handler panicked", "subject", msg.Subject, "panic", p, "stack", string(debug.Stack()))
			resp, err = nil, Errorf(Internal, "%s failed in %s: internal fault, see the daemon's log", d.name, ep.name)
		}
	}()
	enc, err := requestEncoding(msg.Header, msg.Data)
	if err != nil {
		return nil, err
	}
	if _, err := replyEncoding(msg.Header, enc); err != nil {
		return nil, err
	}
	operation, err := operationOf(msg.Header)
	if err != nil {
		return nil, err
	}
	deadline, err := deadlineOf(msg.Header, now)
	if err != nil {
		return nil, err
	}
	if !deadline.After(now) {
		return nil, Errorf(DeadlineExceeded, "%s: the deadline had passed when the request arrived; nothing was done", msg.Subject).With("outcome", "not done")
	}
	if left := deadline.Sub(now); left > 4*replyMargin {
		deadline = deadline.Add(-replyMargin)
	}
	ctx, cancel := context.WithDeadline(d.base, deadline)
	defer cancel()
	if operation != "" {
		ctx = WithOperation(ctx, operation)
	}
	return ep.run(ctx, enc, msg.Data)
}

// respond writes the reply or the problem in the encoding the caller wants.
func (d *dispatcher) respond(msg *nats.Msg, resp proto.Message, failure error) {
	enc, err := requestEncoding(msg.Header, msg.Data)
	if err == nil {
		enc, err = replyEncoding(msg.Header, enc)
	}
	if err != nil {
		enc = encodingJSON // an encoding we do not know: a person may read this one
	}
	reply := &nats.Msg{Subject: msg.Reply, Header: nats.Header{}}
	if failure == nil {
		reply.Data, err = marshal(enc, resp)
		if limit := d.nc.MaxPayload(); err == nil && int64(len(reply.Data)) > limit {
			err = fmt.Errorf("%d bytes exceed the bus's limit of %d", len(reply.Data), limit)
		}
		if err != nil {
			failure = Errorf(Internal, "%s: the reply cannot be sent: %w", msg.Subject, err)
		}
	}
	if failure != nil {
		p := toProblem(failure)
		d.errs.set(reply.Header, p)
		reply.Data, _ = marshal(enc, p)
	}
	reply.Header.Set(HeaderContentType, string(enc))
	if err := d.nc.PublishMsg(reply); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		d.log.Warn("reply not sent", "subject", msg.Subject, "error", err)
	}
}

// stop takes no more requests, lets the running ones answer, and flushes their
// answers out. When ctx ends first the handlers' contexts are cancelled, and
// they are still waited for: a handler that ignores its context is a bug.
func (d *dispatcher) stop(ctx context.Context) error {
	d.mu.Lock()
	endpoints := d.endpoints
	d.stopped = true
	d.endpoints = nil
	d.mu.Unlock()
	defer d.abort()

	// Drain dispatches what the server has sent already, so those requests are
	// answered too; the end of the last drain is the end of new requests.
	for _, ep := range endpoints {
		if err := ep.subscription.Drain(); err != nil {
			_ = ep.subscription.Unsubscribe() // the connection is gone, nothing more can arrive
		}
	}
	var late error
	for _, ep := range endpoints {
		select {
		case <-ep.drained:
		case <-ctx.Done():
			late = fmt.Errorf("stop %s: %w", d.name, context.Cause(ctx))
			_ = ep.subscription.Unsubscribe()
			<-ep.drained
		}
	}
	answered := make(chan struct{})
	go func() {
		d.running.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-ctx.Done():
		late = fmt.Errorf("stop %s: running requests were cancelled: %w", d.name, context.Cause(ctx))
		d.abort()
		<-answered
	}
	if d.nc.IsConnected() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), defaultDialTimeout)
		defer cancel()
		if err := d.nc.FlushWithContext(flush); err != nil && late == nil {
			late = fmt.Errorf("stop %s: flush the last replies: %w", d.name, err)
		}
	}
	return late
}
