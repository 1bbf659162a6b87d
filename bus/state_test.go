// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

func sandboxes(t *testing.T, c *bus.Conn) *bus.Bucket[*vmv1.Sandbox] {
	t.Helper()
	b, err := bus.OpenBucket[*vmv1.Sandbox](t.Context(), c, bus.BucketSandboxes)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordsAreComparedBeforeTheyAreSwapped(t *testing.T) {
	s := sandboxes(t, bustest.Start(t).Conn())
	ctx := t.Context()
	key := bus.Token("sb.1")
	if _, _, err := s.Get(ctx, key); bus.ReasonOf(err) != bus.NotFound {
		t.Errorf("absent: %v", err)
	}
	if keys, err := s.Keys(ctx); len(keys) != 0 || err != nil {
		t.Errorf("empty bucket lists %v, %v", keys, err)
	}
	first, err := s.Create(ctx, key, &vmv1.Sandbox{Id: "sb.1", State: "starting"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, key, &vmv1.Sandbox{}); bus.ReasonOf(err) != bus.AlreadyExists {
		t.Errorf("second create: %v", err)
	}
	if _, err := s.Update(ctx, key, &vmv1.Sandbox{Id: "sb.1", State: "running"}, first); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(ctx, key, &vmv1.Sandbox{}, first); !errors.Is(err, bus.ErrConflict) || bus.ReasonOf(err) != bus.FailedPrecondition {
		t.Errorf("stale update: %v", err)
	}
	got, _, err := s.Get(ctx, key)
	if err != nil || got.State != "running" {
		t.Errorf("got %v, %v", got, err)
	}
	all, err := s.All(ctx)
	if err != nil || len(all) != 1 || all[0].Key != key || all[0].Value.Id != "sb.1" {
		t.Errorf("all: %v, %v", all, err)
	}
	if err := s.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(ctx, key); bus.ReasonOf(err) != bus.NotFound {
		t.Errorf("deleted: %v", err)
	}
	if _, err := s.Create(ctx, key, &vmv1.Sandbox{}); err != nil {
		t.Errorf("create after delete: %v", err)
	}
	if _, _, err := s.Get(ctx, "a b"); bus.ReasonOf(err) != bus.InvalidArgument {
		t.Errorf("bad key: %v", err)
	}
}

// A store in memory must not grow with every container that ever ran.
func TestNothingIsKeptOfRecordsThatWent(t *testing.T) {
	bus.SetGoneLife(t, time.Second)
	c := bustest.Start(t).Conn()
	s := sandboxes(t, c)
	const count = 20
	for i := range count {
		key := "vm-" + strconv.Itoa(i)
		for range 3 {
			if _, err := s.Put(t.Context(), key, &vmv1.Sandbox{Id: key}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put(t.Context(), "vm-there", &vmv1.Sandbox{Id: "vm-there"}); err != nil {
		t.Fatal(err)
	}
	stream, err := c.JetStream().Stream(t.Context(), "KV_"+bus.BucketSandboxes)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for first := true; ; first = false {
		info, err := stream.Info(ctx)
		if err != nil {
			t.Fatalf("the records of what went are not forgotten: %v", err)
		}
		if first && info.State.Msgs > count+1 {
			t.Errorf("of %d records that went %d messages are kept", count, info.State.Msgs-1)
		}
		if info.State.Msgs == 1 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if keys, err := s.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("the bucket holds %v, %v", keys, err)
	}
	// What went may come again.
	if _, err := s.Create(t.Context(), "vm-0", &vmv1.Sandbox{Id: "vm-0"}); err != nil {
		t.Errorf("a record that went cannot be made again: %v", err)
	}
}

func TestModifyLosesNoUpdate(t *testing.T) {
	s := sandboxes(t, bustest.Start(t).Conn())
	if _, err := s.Put(t.Context(), "k", &vmv1.Sandbox{}); err != nil {
		t.Fatal(err)
	}
	const writers, each = 8, 10
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range each {
				if _, err := s.Modify(t.Context(), "k", func(v *vmv1.Sandbox) error { v.Vcpus++; return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if v, _, err := s.Get(t.Context(), "k"); err != nil || v.Vcpus != writers*each {
		t.Errorf("counted %v, %v", v, err)
	}
	refusal := errors.New("no")
	if _, err := s.Modify(t.Context(), "k", func(*vmv1.Sandbox) error { return refusal }); !errors.Is(err, refusal) {
		t.Errorf("refused change: %v", err)
	}
}

func TestWatchTellsWhatIsAndWhatComes(t *testing.T) {
	s := sandboxes(t, bustest.Start(t).Conn())
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Put(ctx, "a", &vmv1.Sandbox{Id: "a"}); err != nil {
		t.Fatal(err)
	}
	got := make(chan bus.Entry[*vmv1.Sandbox], 8)
	ended := make(chan error)
	go func() { ended <- s.Watch(ctx, "", func(e bus.Entry[*vmv1.Sandbox]) { got <- e }) }()
	if e := <-got; e.Value.Id != "a" {
		t.Errorf("first: %+v", e)
	}
	if _, err := s.Put(ctx, "b", &vmv1.Sandbox{Id: "b"}); err != nil {
		t.Fatal(err)
	}
	if e := <-got; e.Value.Id != "b" {
		t.Errorf("then: %+v", e)
	}
	if err := s.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if e := <-got; e.Key != "a" || !e.Deleted {
		t.Errorf("deletion: %+v", e)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the end of ctx is %v", err)
	}
}

func TestOperationActsOnce(t *testing.T) {
	b := bustest.Start(t)
	ops, err := bus.OpenOperations(t.Context(), b.Conn())
	if err != nil {
		t.Fatal(err)
	}
	req := &vmv1.KillRequest{Signal: 15}
	t.Run("a repeat gets the reply", func(t *testing.T) {
		ctx := bus.WithOperation(t.Context(), bus.NewOperationID())
		for range 3 {
			var runs atomic.Int32
			reply, err := bus.Once(ctx, ops, "exec", req, func(context.Context) (*vmv1.ExecReply, error) {
				return &vmv1.ExecReply{Channel: 7 + uint32(runs.Add(1))}, nil
			})
			if err != nil || reply.Channel != 8 {
				t.Errorf("got %v, %v", reply, err)
			}
		}
	})
	t.Run("a repeat gets the error", func(t *testing.T) {
		ctx := bus.WithOperation(t.Context(), bus.NewOperationID())
		runs := 0
		for range 3 {
			_, err := bus.Once(ctx, ops, "kill", req, func(context.Context) (*vmv1.KillReply, error) {
				runs++
				return nil, bus.Errorf(bus.NotFound, "run %d", runs)
			})
			if bus.ReasonOf(err) != bus.NotFound || err.Error() != "run 1" || runs != 1 {
				t.Errorf("run %d got %v", runs, err)
			}
		}
	})
	t.Run("an id is for one request", func(t *testing.T) {
		ctx := bus.WithOperation(t.Context(), bus.NewOperationID())
		if _, err := ops.Begin(ctx, "kill", req); err != nil {
			t.Fatal(err)
		}
		if _, err := ops.Begin(ctx, "kill", &vmv1.KillRequest{Signal: 9}); bus.ReasonOf(err) != bus.InvalidArgument {
			t.Errorf("other request: %v", err)
		}
		if _, err := ops.Begin(ctx, "start", req); bus.ReasonOf(err) != bus.InvalidArgument {
			t.Errorf("other method: %v", err)
		}
	})
	t.Run("a death in the middle is an unknown outcome", func(t *testing.T) {
		ctx := bus.WithOperation(t.Context(), bus.NewOperationID())
		op, err := ops.Begin(ctx, "kill", req)
		if err != nil || op.State != bus.OperationNew {
			t.Fatal(op, err)
		}
		_, err = bus.Once(ctx, ops, "kill", req, func(context.Context) (*vmv1.KillReply, error) {
			t.Error("acted twice")
			return &vmv1.KillReply{}, nil
		})
		var e *bus.Error
		if !errors.As(err, &e) || e.Reason != bus.Unavailable || e.Metadata["outcome"] != "unknown" {
			t.Errorf("got %v", err)
		}
		if err := op.Abandon(ctx); err != nil {
			t.Fatal(err)
		}
		if op, err := ops.Begin(ctx, "kill", req); err != nil || op.State != bus.OperationNew {
			t.Errorf("after Abandon: %v, %v", op, err)
		}
	})
	t.Run("an idempotent method goes on from a pending one", func(t *testing.T) {
		ctx := bus.WithOperation(t.Context(), bus.NewOperationID())
		if _, err := ops.Begin(ctx, "create", req); err != nil {
			t.Fatal(err)
		}
		op, err := ops.Begin(ctx, "create", req)
		if err != nil || op.State != bus.OperationPending {
			t.Fatal(op, err)
		}
		if err := op.Finish(ctx, &vmv1.CreateReply{Sandbox: &vmv1.Sandbox{Id: "s"}}, nil); err != nil {
			t.Fatal(err)
		}
		op, err = ops.Begin(ctx, "create", req)
		reply := &vmv1.CreateReply{}
		if err != nil || op.State != bus.OperationDone || op.Reply(reply) != nil || reply.Sandbox.Id != "s" {
			t.Errorf("replay: %v, %v, %v", op, reply, err)
		}
	})
	t.Run("one of many wins", func(t *testing.T) {
		ctx := bus.WithOperation(t.Context(), bus.NewOperationID())
		var runs atomic.Int32
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				_, _ = bus.Once(ctx, ops, "kill", req, func(context.Context) (*vmv1.KillReply, error) {
					runs.Add(1)
					return &vmv1.KillReply{}, nil
				})
			})
		}
		all.Wait()
		if runs.Load() != 1 {
			t.Errorf("acted %d times", runs.Load())
		}
	})
	t.Run("without an id every request acts", func(t *testing.T) {
		runs := 0
		for range 2 {
			if _, err := bus.Once(t.Context(), ops, "kill", req, func(context.Context) (*vmv1.KillReply, error) {
				runs++
				return &vmv1.KillReply{}, nil
			}); err != nil {
				t.Error(err)
			}
		}
		if runs != 2 {
			t.Errorf("acted %d times", runs)
		}
	})
}

func TestEventsOfAnOperationAreKeptOnce(t *testing.T) {
	b := bustest.Start(t)
	c := b.Conn()
	got := make(chan *busv1.Event, 8)
	sub, err := bus.OnEvent(c, "container", func(ev *busv1.Event) { got <- ev })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	id := bus.NewOperationID()
	ctx := bus.WithOperation(t.Context(), id)
	for i := range 2 {
		if err := bus.Publish(ctx, c, &busv1.Event{Kind: "container", Id: "c.1", Event: "started", Attributes: map[string]string{"n": strconv.Itoa(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := bus.Publish(t.Context(), c, &busv1.Event{Kind: "sandbox", Id: "s", Event: "started"}); err != nil {
		t.Fatal(err)
	}
	ev := <-got
	if ev.Id != "c.1" || ev.Host != bustest.Host || ev.OperationId != id || time.Since(ev.Time.AsTime()) > time.Minute {
		t.Errorf("got %v", ev)
	}
	stream, err := c.JetStream().Stream(t.Context(), bus.EventStream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context())
	if err != nil || info.State.Msgs != 2 {
		t.Errorf("the stream keeps %+v, %v; want one of each", info, err)
	}
	msg, err := stream.GetLastMsgForSubject(t.Context(), "ev.testhost.container.c=2E1.started")
	if err != nil || msg.Header.Get(nats.MsgIdHdr) == "" {
		t.Errorf("last message %v, %v", msg, err)
	}
	if err := bus.Publish(t.Context(), c, &busv1.Event{Kind: "container"}); bus.ReasonOf(err) != bus.InvalidArgument {
		t.Errorf("an event without a name: %v", err)
	}
}
