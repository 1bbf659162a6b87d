// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	busv1 "bulkhead/proto/bus/v1"
)

// DefaultTimeout is how long a call without a deadline waits, and what a
// request without one is given.
const DefaultTimeout = 60 * time.Second

// maxGuestReply bounds what a guest may answer.
const maxGuestReply = 64 << 10

// Call sends a request to a service and waits for its answer:
//
//	reply, err := bus.Call[vmv1.StateReply](ctx, c, c.Subject("vm", "state"), &vmv1.StateRequest{…})
//
// The operation id and the deadline of ctx travel along. Errors are *Error. No
// service there is Unavailable; no answer in time is DeadlineExceeded, and then
// the outcome is unknown: ask again with the same operation id, or look.
func Call[Resp any, PResp interface {
	*Resp
	proto.Message
}](ctx context.Context, c *Conn, subject string, req proto.Message) (PResp, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	h := nats.Header{}
	deadline, _ := ctx.Deadline()
	h.Set(HeaderDeadline, deadline.Format(time.RFC3339Nano))
	msg, err := exchange(ctx, c, subject, h, req)
	if err != nil {
		if errors.Is(err, nats.ErrNoResponders) {
			return nil, Errorf(Unavailable, "nobody on host %s answers %s: the service is not running; start it with \"systemctl start bulkhead\": %w", c.host, subject, err)
		}
		return nil, callError(err, subject)
	}
	reply := PResp(new(Resp))
	if err := decodeReply(msg, serviceErrorHeaders, reply); err != nil {
		var remote *remoteError
		if errors.As(err, &remote) {
			return nil, fromProblem(remote.problem)
		}
		return nil, Errorf(Internal, "reply of %s: %w", subject, err)
	}
	return reply, nil
}

// CallAgent is Call to the agent of a sandbox. The guest gets a relative
// timeout, as its clock is its own, and what it answers is bounded; an error
// from it is marked with the metadata from=guest and its text is cleaned.
func CallAgent[Resp any, PResp interface {
	*Resp
	proto.Message
}](ctx context.Context, c *Conn, sandbox, method string, req proto.Message) (PResp, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	h := nats.Header{}
	deadline, _ := ctx.Deadline()
	h.Set(HeaderTimeout, strconv.FormatInt(max(1, time.Until(deadline).Milliseconds()), 10))
	msg, err := exchange(ctx, c, AgentSubject(sandbox, method), h, req)
	what := "the agent of sandbox " + sandbox + " (" + method + ")"
	if err != nil {
		if errors.Is(err, nats.ErrNoResponders) {
			return nil, Errorf(Unavailable, "%s is not connected to the bus: %w", what, err)
		}
		return nil, callError(err, what)
	}
	if len(msg.Data) > maxGuestReply {
		return nil, Errorf(Internal, "%s sent a reply of %d bytes; the limit is %d", what, len(msg.Data), maxGuestReply).With("from", "guest")
	}
	reply := PResp(new(Resp))
	if err := decodeReply(msg, agentErrorHeaders, reply); err != nil {
		var remote *remoteError
		if errors.As(err, &remote) {
			return nil, guestProblem(sandbox, remote.problem)
		}
		return nil, Errorf(Internal, "reply of %s: %w", what, err).With("from", "guest")
	}
	return reply, nil
}

// withDefaultTimeout gives a context without a deadline the default one.
func withDefaultTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, DefaultTimeout)
}

// exchange sends one request and waits for one message, the end of ctx, or the
// loss of the connection.
func exchange(ctx context.Context, c *Conn, subject string, h nats.Header, req proto.Message) (*nats.Msg, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, Errorf(InvalidArgument, "encode the request to %s: %w", subject, err)
	}
	h.Set(HeaderContentType, string(encodingProto))
	h.Set(HeaderAccept, string(encodingProto))
	if id := OperationFrom(ctx); id != "" {
		h.Set(HeaderOperation, id)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if c.nc.IsClosed() {
		return nil, nats.ErrConnectionClosed // nothing was sent
	}
	epoch := c.current()
	stop := context.AfterFunc(epoch, func() { cancel(context.Cause(epoch)) })
	defer stop()
	msg, err := c.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: subject, Header: h, Data: body})
	if err != nil && (errors.Is(context.Cause(ctx), ErrConnectionLost) || errors.Is(err, nats.ErrConnectionClosed)) {
		return nil, ErrConnectionLost
	}
	return msg, err
}

// callError turns what the transport says into a sentence and a reason.
func callError(err error, what string) error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case ReasonOf(err) == DeadlineExceeded:
		return Errorf(DeadlineExceeded, "%s did not answer in time, so the outcome is unknown: look at the state, or repeat with the same operation id: %w", what, err).
			With("outcome", "unknown")
	case errors.Is(err, ErrConnectionLost):
		return Errorf(Unavailable, "the daemon went away before %s answered, so the outcome is unknown: repeat with the same operation id: %w", what, err).
			With("outcome", "unknown")
	}
	return Errorf(ReasonOf(err), "ask %s: %w", what, err)
}

// remoteError carries a Problem out of decodeReply.
type remoteError struct{ problem *busv1.Problem }

func (e *remoteError) Error() string { return e.problem.GetMessage() }

// decodeReply reads a reply into m, or gives the problem it carries.
func decodeReply(msg *nats.Msg, errs errorHeaders, m proto.Message) error {
	enc, err := requestEncoding(msg.Header, msg.Data)
	if err != nil {
		return err
	}
	code := msg.Header.Get(errs.code)
	if code == "" {
		return unmarshal(enc, msg.Data, m)
	}
	p := &busv1.Problem{}
	if err := unmarshal(enc, msg.Data, p); err != nil || p.Reason == "" {
		// Not one of our services; the headers still say what happened.
		p = &busv1.Problem{Reason: string(reasonOfCode(code)), Message: cleanText(msg.Header.Get(errs.text), maxHeaderText)}
	}
	return &remoteError{p}
}

func reasonOfCode(code string) Reason {
	n, _ := strconv.Atoi(code)
	for reason, c := range reasonCodes {
		if c == n {
			return reason
		}
	}
	return Internal
}
