// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/micro"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

func TestStopAnswersWhatRuns(t *testing.T) {
	b := bustest.Start(t)
	s, err := bus.NewService(t.Context(), b.Conn(), bus.ServiceConfig{Name: "vm", Version: "1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	const n = 50
	entered, release := make(chan struct{}, n), make(chan struct{})
	serve(t, s, "start", func(ctx context.Context, _ *vmv1.StartRequest) (*vmv1.StartReply, error) {
		select {
		case entered <- struct{}{}:
		default:
		}
		select {
		case <-release:
			return &vmv1.StartReply{}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	client := b.Dial("client")
	var answered atomic.Int32
	var running sync.WaitGroup
	for range n {
		running.Go(func() {
			if _, err := bus.Call[vmv1.StartReply](t.Context(), client, "testhost.vm.start", &vmv1.StartRequest{}); err != nil {
				t.Errorf("call: %v", err)
				return
			}
			answered.Add(1)
		})
	}
	for range n {
		<-entered
	}
	stopped := make(chan error)
	go func() { stopped <- s.Stop(t.Context()) }()
	// A stopping service is absent for newcomers while it answers the others.
	for absent := false; !absent; {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := bus.Call[vmv1.StartReply](ctx, client, "testhost.vm.start", &vmv1.StartRequest{})
		cancel()
		absent = bus.ReasonOf(err) == bus.Unavailable
		if t.Context().Err() != nil || !absent && bus.ReasonOf(err) != bus.DeadlineExceeded {
			t.Fatalf("a new request during Stop: %v", err)
		}
	}
	close(release)
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := b.Server.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	running.Wait()
	if got := answered.Load(); got != n {
		t.Errorf("%d of %d requests in flight were answered", got, n)
	}
}

func TestStopCancelsWhatOutlivesItsPatience(t *testing.T) {
	b := bustest.Start(t)
	s, err := bus.NewService(t.Context(), b.Conn(), bus.ServiceConfig{Name: "vm", Version: "1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	entered := make(chan struct{})
	serve(t, s, "start", func(ctx context.Context, _ *vmv1.StartRequest) (*vmv1.StartReply, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	failed := make(chan error, 1)
	go func() {
		_, err := bus.Call[vmv1.StartReply](t.Context(), b.Conn(), "testhost.vm.start", &vmv1.StartRequest{})
		failed <- err
	}()
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop: %v", err)
	}
	if err := <-failed; bus.ReasonOf(err) != bus.DeadlineExceeded {
		t.Errorf("the cancelled call got %v", err)
	}
}

func TestStatisticsAreTrueThoughRequestsRunConcurrently(t *testing.T) {
	b := bustest.Start(t)
	s := newService(t, b.Conn(), bus.ServiceConfig{Description: "test"})
	serve(t, s, "start", func(_ context.Context, req *vmv1.StartRequest) (*vmv1.StartReply, error) {
		<-time.After(20 * time.Millisecond)
		if req.GetRef().GetId() == "bad" {
			return nil, bus.Errorf(bus.NotFound, "no bad")
		}
		return &vmv1.StartReply{}, nil
	})
	var calls sync.WaitGroup
	for i := range 10 {
		calls.Go(func() {
			id := "good"
			if i < 3 {
				id = "bad"
			}
			_, _ = bus.Call[vmv1.StartReply](t.Context(), b.Conn(), "testhost.vm.start", &vmv1.StartRequest{Ref: &vmv1.ContainerRef{Id: id}})
		})
	}
	calls.Wait()
	reply, err := b.Conn().NATS().Request("$SRV.STATS.vm", nil, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var stats micro.Stats
	if err := json.Unmarshal(reply.Data, &stats); err != nil {
		t.Fatal(err)
	}
	var got *micro.EndpointStats
	for _, ep := range stats.Endpoints {
		if ep.Name == "start" {
			got = ep
		}
	}
	if stats.Type != micro.StatsResponseType || got == nil || got.NumRequests != 10 || got.NumErrors != 3 ||
		got.LastError != "NOT_FOUND: no bad" || got.AverageProcessingTime < 15*time.Millisecond {
		t.Errorf("stats %+v", got)
	}
	reply, err = b.Conn().NATS().Request("$SRV.INFO", nil, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var info micro.Info
	if err := json.Unmarshal(reply.Data, &info); err != nil {
		t.Fatal(err)
	}
	if len(info.Endpoints) != 2 || info.Endpoints[1].Metadata["request"] != "bulkhead.vm.v1.StartRequest" || info.Endpoints[1].Subject != "testhost.vm.start" {
		t.Errorf("info %+v", info)
	}
}

func TestEveryServiceAnswersStatus(t *testing.T) {
	b := bustest.Start(t)
	newService(t, b.Conn(), bus.ServiceConfig{Name: "ksm", Detail: func() string { return "nothing to merge" }, Ready: func() bool { return false }})
	got, err := bus.Call[busv1.ServiceStatus](t.Context(), b.Conn(), "testhost.ksm.status", &busv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Service != "ksm" || got.Host != bustest.Host || got.Version != "1.2.3" || got.Ready || got.Detail != "nothing to merge" || got.Pid == 0 {
		t.Errorf("status %v", got)
	}
}

func TestRepliesGoToInboxesOnly(t *testing.T) {
	b := bustest.Start(t)
	s := newService(t, b.Conn(), bus.ServiceConfig{})
	var ran atomic.Bool
	serve(t, s, "list", func(context.Context, *vmv1.ListRequest) (*vmv1.ListReply, error) {
		ran.Store(true)
		return &vmv1.ListReply{}, nil
	})
	nc := b.Conn().NATS()
	if err := nc.PublishRequest("testhost.vm.list", "testhost.vm.kill", nil); err != nil {
		t.Fatal(err)
	}
	// A later request on the same subscription passes after the ignored one.
	if _, err := bus.Call[vmv1.ListReply](t.Context(), b.Conn(), "testhost.vm.list", &vmv1.ListRequest{}); err != nil {
		t.Fatal(err)
	}
	reply, err := nc.Request("$SRV.STATS.vm", nil, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var stats micro.Stats
	if err := json.Unmarshal(reply.Data, &stats); err != nil {
		t.Fatal(err)
	}
	if n := stats.Endpoints[1].NumRequests; n != 1 {
		t.Errorf("%d requests ran, want only the one with an inbox", n)
	}
}
