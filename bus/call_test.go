// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	vmv1 "bulkhead/proto/vm/v1"
)

func TestAbsentDaemonIsSaidInASentence(t *testing.T) {
	stale, err := os.MkdirTemp("", "bus") // short, unlike t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(stale) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(stale, bus.SocketName)})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for name, dir := range map[string]string{"no run directory": "/nonexistent/run", "stale socket": stale} {
		t.Run(name, func(t *testing.T) {
			_, err := bus.Dial(t.Context(), dir, "test")
			if !errors.Is(err, bus.ErrNoDaemon) || bus.ReasonOf(err) != bus.Unavailable {
				t.Fatalf("got %v", err)
			}
			text := err.Error()
			if !strings.Contains(text, "systemctl start bulkhead") || !strings.Contains(text, dir) {
				t.Errorf("%q does not tell what to do", text)
			}
			// Engines take these texts for a missing or forbidden command of the container.
			for _, banned := range []string{"no such file or directory", "permission denied", "not found"} {
				if strings.Contains(strings.ToLower(text), banned) {
					t.Errorf("%q contains %q", text, banned)
				}
			}
		})
	}
}

func TestMutePeerIsGivenUp(t *testing.T) {
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, bus.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begin := time.Now()
	_, err = bus.Dial(t.Context(), dir, "test", bus.DialTimeout(300*time.Millisecond))
	if bus.ReasonOf(err) != bus.Unavailable || time.Since(begin) > time.Minute {
		t.Errorf("got %v after %v", err, time.Since(begin))
	}
}

func TestAbsentServiceIsUnavailableAtOnce(t *testing.T) {
	b := bustest.Start(t)
	begin := time.Now()
	_, err := bus.Call[vmv1.StateReply](t.Context(), b.Dial("cli"), "testhost.vm.state", &vmv1.StateRequest{})
	if bus.ReasonOf(err) != bus.Unavailable || !strings.Contains(err.Error(), "testhost.vm.state") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("took %v", took)
	}
	_, err = bus.CallAgent[vmv1.StateReply](t.Context(), b.Conn(), "s1", "state", &vmv1.StateRequest{})
	if bus.ReasonOf(err) != bus.Unavailable || !strings.Contains(err.Error(), "agent of sandbox s1") {
		t.Errorf("absent agent: got %v", err)
	}
}

func TestNoAnswerInTimeIsAnUnknownOutcome(t *testing.T) {
	b := bustest.Start(t)
	if _, err := b.Conn().NATS().SubscribeSync("testhost.vm.start"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := bus.Call[vmv1.StartReply](ctx, b.Conn(), "testhost.vm.start", &vmv1.StartRequest{})
	var e *bus.Error
	if !errors.As(err, &e) || e.Reason != bus.DeadlineExceeded || e.Metadata["outcome"] != "unknown" || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %#v", err)
	}
}

func TestDeathOfTheDaemonEndsWaitingCalls(t *testing.T) {
	for _, persistent := range []bool{false, true} {
		b := bustest.Start(t)
		if _, err := b.Conn().NATS().SubscribeSync("testhost.vm.start"); err != nil {
			t.Fatal(err)
		}
		var options []bus.DialOption
		if persistent {
			options = append(options, bus.Persistent())
		}
		client := b.Dial("client", options...)
		// The subscriber must have the request before the bus goes.
		seen := make(chan struct{})
		if _, err := b.Conn().NATS().Subscribe("testhost.vm.start", nil); err == nil {
			t.Fatal("a nil handler was accepted")
		}
		watch, err := b.Server.ConnInProcess("watch")
		if err != nil {
			t.Fatal(err)
		}
		sub, err := watch.NATS().SubscribeSync("testhost.vm.start")
		if err != nil {
			t.Fatal(err)
		}
		if err := watch.NATS().Flush(); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = sub.NextMsg(30 * time.Second)
			close(seen)
		}()
		failed := make(chan error, 1)
		go func() {
			_, err := bus.Call[vmv1.StartReply](t.Context(), client, "testhost.vm.start", &vmv1.StartRequest{})
			failed <- err
		}()
		<-seen
		begin := time.Now()
		if err := b.Server.Close(); err != nil {
			t.Error(err)
		}
		err = <-failed
		var e *bus.Error
		if !errors.As(err, &e) || e.Reason != bus.Unavailable || e.Metadata["outcome"] != "unknown" {
			t.Errorf("persistent %v: got %v", persistent, err)
		}
		if took := time.Since(begin); took > time.Minute {
			t.Errorf("persistent %v: the call waited %v", persistent, took)
		}
	}
}

func TestCommandsAreNotBufferedWhileDisconnected(t *testing.T) {
	b := bustest.Start(t)
	client := b.Dial("daemon", bus.Persistent())
	lost := make(chan struct{})
	status := client.NATS().StatusChanged()
	go func() {
		for range status {
			if !client.NATS().IsConnected() {
				close(lost)
				return
			}
		}
	}()
	if err := b.Server.Close(); err != nil {
		t.Fatal(err)
	}
	<-lost
	begin := time.Now()
	_, err := bus.Call[vmv1.StartReply](t.Context(), client, "testhost.vm.start", &vmv1.StartRequest{})
	if bus.ReasonOf(err) != bus.Unavailable || time.Since(begin) > time.Minute {
		t.Errorf("got %v after %v", err, time.Since(begin))
	}
}
