// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// newService starts a service "vm" that stops with the test.
func newService(t *testing.T, c *bus.Conn, cfg bus.ServiceConfig) *bus.Service {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "vm"
	}
	cfg.Version, cfg.Log = "1.2.3", bustest.Log(t)
	s, err := bus.NewService(t.Context(), c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return s
}

func serve[Req, Resp proto.Message](t *testing.T, s *bus.Service, method string, fn func(context.Context, Req) (Resp, error)) {
	t.Helper()
	if err := bus.Handle(s, method, fn); err != nil {
		t.Fatal(err)
	}
}

func echoState(_ context.Context, req *vmv1.StateRequest) (*vmv1.StateReply, error) {
	return &vmv1.StateReply{Container: &vmv1.Container{Ref: req.GetRef(), Sandbox: "s1"}}, nil
}

func TestRequestAndReplyEncodingsAreNegotiated(t *testing.T) {
	b := bustest.Start(t)
	s := newService(t, b.Conn(), bus.ServiceConfig{})
	serve(t, s, "state", echoState)
	req := &vmv1.StateRequest{Ref: &vmv1.ContainerRef{Root: "/r", Id: "c1"}}
	asProto, _ := proto.Marshal(req)
	asJSON, _ := protojson.Marshal(req)
	const pb, js = "application/protobuf", "application/json"
	for _, tc := range []struct {
		name                    string
		contentType, accept     string
		body                    []byte
		wantType, wantID, wants string
	}{
		{"sniffed protobuf", "", "", asProto, pb, "c1", ""},
		{"sniffed json", "", "", asJSON, js, "c1", ""},
		{"json after space", "", "", append([]byte(" \n"), asJSON...), js, "c1", ""},
		{"empty is json", "", "", nil, js, "", ""},
		{"named protobuf, empty", pb, "", nil, pb, "", ""},
		{"named json", js, "", asJSON, js, "c1", ""},
		{"json asks for protobuf", "", pb, asJSON, pb, "c1", ""},
		{"protobuf asks for json", pb, js, asProto, js, "c1", ""},
		{"parameters and case", "Application/JSON; charset=utf-8", "", asJSON, js, "c1", ""},
		{"accept anything", js, "*/*", asJSON, js, "c1", ""},
		{"unknown encoding", "text/xml", "", asJSON, js, "", "400 INVALID_ARGUMENT"},
		{"unknown accept", "", "text/xml", asJSON, js, "", "400 INVALID_ARGUMENT"},
		{"json named protobuf", pb, "", asJSON, pb, "", "400 INVALID_ARGUMENT"},
		{"unknown field", js, "", []byte(`{"reff":{}}`), js, "", `400 INVALID_ARGUMENT: testhost.vm.state: not a valid JSON bulkhead.vm.v1.StateRequest: (line 1:2): unknown field "reff"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			msg := &nats.Msg{Subject: "testhost.vm.state", Header: nats.Header{}, Data: tc.body}
			if tc.contentType != "" {
				msg.Header.Set("Content-Type", tc.contentType)
			}
			if tc.accept != "" {
				msg.Header.Set("Accept", tc.accept)
			}
			reply, err := b.Conn().NATS().RequestMsg(msg, 30*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if got := reply.Header.Get("Content-Type"); got != tc.wantType {
				t.Errorf("reply is %s, want %s", got, tc.wantType)
			}
			decode := proto.Unmarshal
			if tc.wantType == js {
				decode = protojson.Unmarshal
			}
			if tc.wants != "" {
				got := reply.Header.Get("Nats-Service-Error-Code") + " " + strings.ReplaceAll(reply.Header.Get("Nats-Service-Error"), "\u00a0", " ")
				if !strings.HasPrefix(got, tc.wants) {
					t.Errorf("error headers %q, want %q", got, tc.wants)
				}
				if err := decode(reply.Data, &busv1.Problem{}); err != nil {
					t.Errorf("the problem does not decode: %v", err)
				}
				return
			}
			got := &vmv1.StateReply{}
			if err := decode(reply.Data, got); err != nil || got.GetContainer().GetRef().GetId() != tc.wantID {
				t.Errorf("reply %v, error %v, want id %q", got, err, tc.wantID)
			}
		})
	}
}

func TestErrorsKeepTheirReasonAcrossTheBus(t *testing.T) {
	b := bustest.Start(t)
	s := newService(t, b.Conn(), bus.ServiceConfig{})
	var failure error
	serve(t, s, "start", func(context.Context, *vmv1.StartRequest) (*vmv1.StartReply, error) { return nil, failure })
	for _, tc := range []struct {
		err       error
		reason    bus.Reason
		text      string
		retryable bool
	}{
		{bus.Errorf(bus.NotFound, "no container %q", "c1").With("id", "c1"), bus.NotFound, `no container "c1"`, false},
		{fmt.Errorf("start c1: %w", bus.Errorf(bus.FailedPrecondition, "it runs")), bus.FailedPrecondition, "start c1: it runs", false},
		{bus.Errorf(bus.Unavailable, "no agent"), bus.Unavailable, "no agent", true},
		{errors.New("line one\nline two"), bus.Internal, "line one\nline two", false},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), bus.DeadlineExceeded, "wait: context deadline exceeded", false},
	} {
		failure = tc.err
		_, err := bus.Call[vmv1.StartReply](t.Context(), b.Conn(), "testhost.vm.start", &vmv1.StartRequest{})
		var got *bus.Error
		if !errors.As(err, &got) {
			t.Fatalf("%v arrived as %T %v", tc.err, err, err)
		}
		if got.Reason != tc.reason || got.Message != tc.text || got.Retryable != tc.retryable {
			t.Errorf("%v arrived as %+v", tc.err, got)
		}
	}
	failure = bus.Errorf(bus.NotFound, "x").With("id", "c1")
	_, err := bus.Call[vmv1.StartReply](t.Context(), b.Conn(), "testhost.vm.start", &vmv1.StartRequest{})
	var got *bus.Error
	if errors.As(err, &got); got.Metadata["id"] != "c1" {
		t.Errorf("metadata was lost: %+v", got)
	}
}

func TestHandlerGetsDeadlineAndOperation(t *testing.T) {
	b := bustest.Start(t)
	s := newService(t, b.Conn(), bus.ServiceConfig{})
	var operation string
	var left time.Duration
	serve(t, s, "kill", func(ctx context.Context, _ *vmv1.KillRequest) (*vmv1.KillReply, error) {
		operation = bus.OperationFrom(ctx)
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return &vmv1.KillReply{}, nil
	})
	id := bus.NewOperationID()
	ctx, cancel := context.WithTimeout(bus.WithOperation(t.Context(), id), 40*time.Second)
	defer cancel()
	if _, err := bus.Call[vmv1.KillReply](ctx, b.Conn(), "testhost.vm.kill", &vmv1.KillRequest{}); err != nil {
		t.Fatal(err)
	}
	if operation != id || left <= 20*time.Second || left > 40*time.Second {
		t.Errorf("handler saw operation %q and %v left, want %q and almost 40 s", operation, left, id)
	}
	if _, err := bus.Call[vmv1.KillReply](t.Context(), b.Conn(), "testhost.vm.kill", &vmv1.KillRequest{}); err != nil {
		t.Fatal(err)
	}
	if left < 40*time.Second || left > bus.DefaultTimeout {
		t.Errorf("without a deadline the handler has %v, want the default", left)
	}
}

func TestNothingIsDoneAfterTheDeadline(t *testing.T) {
	b := bustest.Start(t)
	s := newService(t, b.Conn(), bus.ServiceConfig{})
	var ran atomic.Bool
	serve(t, s, "start", func(context.Context, *vmv1.StartRequest) (*vmv1.StartReply, error) {
		ran.Store(true)
		return &vmv1.StartReply{}, nil
	})
	for header, value := range map[string]string{
		bus.HeaderDeadline:  time.Now().Add(-time.Second).Format(time.RFC3339Nano),
		bus.HeaderTimeout:   "0",
		bus.HeaderOperation: "not a ulid",
	} {
		msg := &nats.Msg{Subject: "testhost.vm.start", Header: nats.Header{header: {value}}}
		reply, err := b.Conn().NATS().RequestMsg(msg, 30*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		want := "504"
		if header == bus.HeaderOperation {
			want = "400"
		}
		if got := reply.Header.Get("Nats-Service-Error-Code"); got != want || ran.Load() {
			t.Errorf("%s %q: code %s, ran %v; want %s, not run", header, value, got, ran.Load(), want)
		}
	}
}

func TestPanickingHandlerIsAnInternalError(t *testing.T) {
	b := bustest.Start(t)
	s := newService(t, b.Conn(), bus.ServiceConfig{})
	serve(t, s, "start", func(context.Context, *vmv1.StartRequest) (*vmv1.StartReply, error) { panic("boom") })
	for range 2 { // the second shows that the first did no harm
		_, err := bus.Call[vmv1.StartReply](t.Context(), b.Conn(), "testhost.vm.start", &vmv1.StartRequest{})
		if bus.ReasonOf(err) != bus.Internal || strings.Contains(err.Error(), "boom") {
			t.Errorf("got %v", err)
		}
	}
}

func TestTooManyRequestsAreRefusedNotQueued(t *testing.T) {
	b := bustest.Start(t)
	s := newService(t, b.Conn(), bus.ServiceConfig{MaxInFlight: 2})
	entered, release := make(chan struct{}), make(chan struct{})
	serve(t, s, "start", func(context.Context, *vmv1.StartRequest) (*vmv1.StartReply, error) {
		entered <- struct{}{}
		<-release
		return &vmv1.StartReply{}, nil
	})
	call := func() error {
		_, err := bus.Call[vmv1.StartReply](t.Context(), b.Conn(), "testhost.vm.start", &vmv1.StartRequest{})
		return err
	}
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() {
			if err := call(); err != nil {
				t.Errorf("an accepted request failed: %v", err)
			}
		})
		<-entered
	}
	if err := call(); bus.ReasonOf(err) != bus.ResourceExhausted {
		t.Errorf("the third request got %v", err)
	}
	close(release)
	running.Wait()
}
