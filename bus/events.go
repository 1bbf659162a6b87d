// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	busv1 "bulkhead/proto/bus/v1"
)

// Publish tells of a lifecycle step on ev.<host>.<kind>.<id>.<event> and waits
// until the stream EV has it. Host and time are filled in where missing, and
// the operation id from ctx. An event of an operation is kept once, however
// often it is published.
func Publish(ctx context.Context, c *Conn, ev *busv1.Event) error {
	ev = proto.CloneOf(ev)
	if ev.Host == "" {
		ev.Host = c.host
	}
	if ev.Time == nil {
		ev.Time = timestamppb.Now()
	}
	if ev.OperationId == "" {
		ev.OperationId = OperationFrom(ctx)
	}
	if ev.Kind == "" || ev.Event == "" {
		return Errorf(InvalidArgument, "an event needs a kind and a name, this has %q and %q", ev.Kind, ev.Event)
	}
	body, err := protojson.Marshal(ev)
	if err != nil {
		return Errorf(InvalidArgument, "encode event %s.%s: %w", ev.Kind, ev.Event, err)
	}
	msg := &nats.Msg{Subject: EventSubject(ev.Host, ev.Kind, orNone(ev.Id), ev.Event), Data: body, Header: nats.Header{}}
	msg.Header.Set(HeaderContentType, string(encodingJSON))
	if ev.OperationId != "" {
		msg.Header.Set(jetstream.MsgIDHeader, ev.OperationId+"/"+msg.Subject)
	}
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	if _, err := c.js.PublishMsg(ctx, msg); err != nil {
		return Errorf(ReasonOf(err), "publish event %s: %w", msg.Subject, err)
	}
	return nil
}

// OnEvent calls fn with each lifecycle event of a kind on this host from now
// on; an empty kind is every kind. Unsubscribe ends it.
func OnEvent(c *Conn, kind string, fn func(*busv1.Event)) (*nats.Subscription, error) {
	sub, err := c.nc.Subscribe(EventSubject(c.host, kind, "", ""), func(msg *nats.Msg) {
		ev := &busv1.Event{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(msg.Data, ev); err != nil {
			c.log.Warn("event dropped", "subject", msg.Subject, "error", err)
			return
		}
		fn(ev)
	})
	if err != nil {
		return nil, fmt.Errorf("watch events: %w", err)
	}
	if err := c.nc.FlushTimeout(defaultDialTimeout); err != nil {
		_ = sub.Unsubscribe()
		return nil, fmt.Errorf("watch events: %w", err)
	}
	return sub, nil
}

// orNone names the id part of an event about the host itself.
func orNone(id string) string {
	if id == "" {
		return "_"
	}
	return id
}
