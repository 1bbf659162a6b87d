// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	agentv1 "bulkhead/proto/agent/v1"
)

func TestAgentAnswersTheHost(t *testing.T) {
	b := bustest.Start(t)
	nc := b.Guest("sb.1")
	agent := bus.NewAgentServer(nc, "sb.1", bus.AgentLog(bustest.Log(t)))
	var left time.Duration
	err := bus.HandleAgent(agent, "create", func(ctx context.Context, req *agentv1.CreateRequest) (*agentv1.CreateReply, error) {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		if req.Container == "bad" {
			return nil, bus.Errorf(bus.FailedPrecondition, "no\x1b[31m such\nrootfs %s", strings.Repeat("x", 2000)).With("k\x00", "v\x07")
		}
		if req.Container == "huge" {
			return nil, bus.Errorf(bus.Reason("MADE_UP"), "x")
		}
		return &agentv1.CreateReply{Pid: 42}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	call := func(container string) (*agentv1.CreateReply, error) {
		return bus.CallAgent[agentv1.CreateReply](ctx, b.Conn(), "sb.1", "create", &agentv1.CreateRequest{Container: container})
	}
	reply, err := call("good")
	if err != nil || reply.Pid != 42 || left <= time.Second || left > 30*time.Second {
		t.Errorf("reply %v, error %v, %v left in the guest", reply, err, left)
	}
	_, err = call("bad")
	var e *bus.Error
	if !errors.As(err, &e) || e.Reason != bus.FailedPrecondition || e.Metadata["from"] != "guest" || e.Metadata["k?"] != "v?" {
		t.Fatalf("got %#v", err)
	}
	if len(e.Message) > 700 || strings.ContainsAny(e.Message, "\x1b\n") || !strings.HasPrefix(e.Message, "guest sb.1: no?[31m such rootfs xxx") {
		t.Errorf("the guest's text is not clean: %q", e.Message)
	}
	if _, err := call("huge"); bus.ReasonOf(err) != bus.Internal {
		t.Errorf("a made-up reason arrived as %v", err)
	}
	if err := agent.Stop(ctx); err != nil {
		t.Error(err)
	}
	if _, err := call("good"); bus.ReasonOf(err) != bus.Unavailable {
		t.Errorf("after stop: %v", err)
	}
}

func TestAgentEventsArriveTyped(t *testing.T) {
	b := bustest.Start(t)
	var log bytes.Buffer // written by the subscription, read after the last event
	host := b.Dial("host", bus.WithLog(hclog.New(&hclog.LoggerOptions{Output: &log})))
	got := make(chan *agentv1.Ready, 1)
	sub, err := bus.OnAgentEvent(host, "s1", "ready", func(r *agentv1.Ready) { got <- r })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	nc := b.Guest("s1")
	for range 100 {
		if err := nc.Publish(bus.AgentEventSubject("s1", "ready"), []byte("\xff\xff")); err != nil {
			t.Fatal(err)
		}
	}
	if err := bus.PublishAgentEvent(nc, "s1", "ready", &agentv1.Ready{Kernel: "6.1"}); err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.Kernel != "6.1" {
		t.Errorf("got %v", r)
	}
	if lines := strings.Count(log.String(), "\n"); lines != 1 {
		t.Errorf("the guest's nonsense made %d lines of log, want one: %s", lines, log.String())
	}
}

// pipeWithoutDeadlines is a serial line: no deadlines, no end of connection.
type pipeWithoutDeadlines struct{ net.Conn }

func (pipeWithoutDeadlines) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (pipeWithoutDeadlines) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (pipeWithoutDeadlines) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

func TestGuestGivesUpAMutePeerWithoutDeadlines(t *testing.T) {
	bus.SetGuestConnectTimeout(t, 300*time.Millisecond)
	begin := time.Now()
	var far net.Conn
	_, err := bus.ConnectGuest(t.Context(), "s1", func(context.Context) (net.Conn, error) {
		var near net.Conn
		near, far = net.Pipe()
		return pipeWithoutDeadlines{near}, nil
	})
	if took := time.Since(begin); err == nil || took > time.Minute {
		t.Errorf("got %v after %v", err, took)
	}
	_ = far.Close()
}

func TestGuestComesBackWithItsHandlers(t *testing.T) {
	b := bustest.Start(t)
	nc := b.Guest("s1")
	agent := bus.NewAgentServer(nc, "s1")
	if err := bus.HandleAgent(agent, "start", func(context.Context, *agentv1.StartRequest) (*agentv1.StartReply, error) {
		return &agentv1.StartReply{}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	back := make(chan struct{}, 8)
	status := nc.StatusChanged()
	go func() {
		for s := range status {
			if s.String() == "CONNECTED" {
				back <- struct{}{}
			}
		}
	}()
	b.Server.DisconnectGuest("s1")
	if _, err := bus.CallAgent[agentv1.StartReply](t.Context(), b.Conn(), "s1", "start", &agentv1.StartRequest{}); bus.ReasonOf(err) != bus.Unavailable {
		t.Errorf("right after the disconnection: %v", err)
	}
	<-back
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.CallAgent[agentv1.StartReply](t.Context(), b.Conn(), "s1", "start", &agentv1.StartRequest{}); err != nil {
		t.Errorf("after the reconnection: %v", err)
	}
}
