// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"syscall"
	"testing"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/link"
	"bulkhead/bus/stdio"
	agentv1 "bulkhead/proto/agent/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
)

const sandbox = "box"

// worker is the host side of one fake VM: bus and both sessions.
type worker struct {
	t   *testing.T
	bus *bustest.Bus
	vm  hypervisor.VM
	io  *link.Session
}

func start(t *testing.T, o fake.Options) *worker {
	t.Helper()
	w := &worker{t: t, bus: bustest.Start(t)}
	ready := make(chan struct{}, 1)
	sub, err := bus.OnAgentEvent(w.bus.Conn(), sandbox, "ready", func(*agentv1.Ready) { ready <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	driver := fake.New(o)
	w.vm, err = driver.Start(t.Context(), hypervisor.Spec{ID: sandbox, Dir: t.TempDir(), Accelerator: hypervisor.TCG})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.vm.Kill(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ctl := w.session(w.vm.DialCtl)
	if err := bus.Greet(ctl, &agentv1.Greeting{Vm: sandbox, Entropy: make([]byte, bus.GreetingEntropy)}); err != nil {
		t.Fatal(err)
	}
	join(t, w.bus.GuestDial(sandbox), ctl.NetConn())
	w.io = w.session(w.vm.DialIO)
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		t.Fatal("the fake agent is not ready")
	}
	return w
}

func (w *worker) session(dial func(context.Context) (net.Conn, error)) *link.Session {
	w.t.Helper()
	conn, err := dial(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := link.Dial(w.t.Context(), conn)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

func join(t *testing.T, a, b net.Conn) {
	ended := make(chan struct{}, 2)
	pump := func(dst, src net.Conn) {
		_, _ = io.Copy(dst, src)
		dst.Close()
		ended <- struct{}{}
	}
	go pump(a, b)
	go pump(b, a)
	t.Cleanup(func() { a.Close(); b.Close(); <-ended; <-ended })
}

func call[Resp any, P interface {
	*Resp
	proto.Message
}](w *worker, method string, req proto.Message) (P, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	return bus.CallAgent[Resp, P](ctx, w.bus.Conn(), sandbox, method, req)
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (w *worker) create(key string, channel uint32, args ...string) {
	w.t.Helper()
	config, _ := json.Marshal(specs.Spec{Process: &specs.Process{Args: args, Env: []string{"FAKE_EXIT=9"}}})
	must[*agentv1.CreateReply](w.t)(call[agentv1.CreateReply](w, "create", &agentv1.CreateRequest{
		Container: key, Config: string(config), Channel: channel,
	}))
}

func (w *worker) start(key string) {
	w.t.Helper()
	must[*agentv1.StartReply](w.t)(call[agentv1.StartReply](w, "start", &agentv1.StartRequest{Container: key}))
}

// collect gathers output until the exit of channel and what it says was written,
// which comes later when the process was faster than the host's window.
func (w *worker) collect(channel uint32) (output string, code int) {
	w.t.Helper()
	timer := time.AfterFunc(30*time.Second, func() { w.io.Close() })
	defer timer.Stop()
	for end := uint64(math.MaxUint64); ; {
		b, err := w.io.Recv()
		if err != nil {
			w.t.Fatalf("waiting for the exit: %v", err)
		}
		f, err := stdio.Parse(b)
		if err != nil {
			w.t.Fatal(err)
		}
		switch {
		case f.Channel != channel:
		case f.Type == stdio.TypeData:
			output += string(f.Payload)
		case f.Type == stdio.TypeExit:
			code, end = f.Code(), f.End(stdio.Stdout)
		}
		if uint64(len(output)) >= end {
			return output, code
		}
	}
}

func (w *worker) sync(channel uint32) {
	w.t.Helper()
	if err := w.io.Send(stdio.AppendSimple(nil, stdio.TypeSync, 0, channel, 0)); err != nil {
		w.t.Fatal(err)
	}
	for _, stream := range []uint8{stdio.Stdout, stdio.Stderr} {
		frame := stdio.AppendWindow(nil, stdio.TypeResume, stream, 0, channel, 0, stdio.Window)
		if err := w.io.Send(frame); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestFakeContainerRunsAndReports(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		args   []string
		signal int32
		output string
		code   int
	}{
		{"echo", []string{"/bin/echo", "hi", "there"}, 0, "hi there\n", 9},
		{"exit code", []string{"exit", "42"}, 0, "", 42},
		{"unknown program", []string{"whatever"}, 0, "", 9},
		{"terminated", []string{"sleep", "1000"}, int32(syscall.SIGTERM), "", 143},
		{"killed", []string{"sleep", "1000"}, int32(syscall.SIGKILL), "", 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, fake.Options{})
			w.create("c1", 5, c.args...)
			w.sync(5)
			w.start("c1")
			if c.signal != 0 {
				must[*agentv1.SignalReply](t)(call[agentv1.SignalReply](w, "signal", &agentv1.SignalRequest{Container: "c1", Signal: c.signal}))
			}
			if output, code := w.collect(5); output != c.output || code != c.code {
				t.Errorf("the process says %q and ends with %d, want %q and %d", output, code, c.output, c.code)
			}
			status := must[*agentv1.StatusReply](t)(call[agentv1.StatusReply](w, "status", &agentv1.StatusRequest{}))
			if len(status.Containers) != 1 || status.Containers[0].Status != "stopped" {
				t.Errorf("the status is %v", status)
			}
		})
	}
}

func TestFakeContainerTakesInputAndExecs(t *testing.T) {
	t.Parallel()
	w := start(t, fake.Options{})
	w.create("c1", 1, "cat")
	w.sync(1)
	w.start("c1")
	must[*agentv1.ExecReply](t)(call[agentv1.ExecReply](w, "exec", &agentv1.ExecRequest{
		Container: "c1", ExecId: "e1", Channel: 2, Process: `{"args":["exit","3"],"cwd":"/"}`,
	}))
	w.sync(2)
	if _, code := w.collect(2); code != 3 {
		t.Errorf("the exec ended with %d", code)
	}
	data := stdio.Header{Type: stdio.TypeData, Stream: stdio.Stdin, Channel: 1, Len: 5}
	frame := make([]byte, stdio.HeaderSize, stdio.HeaderSize+5)
	data.Put(frame)
	frame = append(frame, "hello"...)
	if err := w.io.Send(frame); err != nil {
		t.Fatal(err)
	}
	if err := w.io.Send(stdio.AppendSimple(nil, stdio.TypeEOF, stdio.Stdin, 1, 5)); err != nil {
		t.Fatal(err)
	}
	if output, code := w.collect(1); output != "hello" || code != 9 {
		t.Errorf("cat gave %q and ended with %d", output, code)
	}
	_, err := call[agentv1.StartReply](w, "start", &agentv1.StartRequest{Container: "c1"})
	if bus.ReasonOf(err) != bus.FailedPrecondition {
		t.Errorf("a second start gives %v", err)
	}
	must[*agentv1.DeleteReply](t)(call[agentv1.DeleteReply](w, "delete", &agentv1.DeleteRequest{Container: "c1"}))
	if _, err = call[agentv1.StartReply](w, "start", &agentv1.StartRequest{Container: "c1"}); bus.ReasonOf(err) != bus.NotFound {
		t.Errorf("a start after the delete gives %v", err)
	}
}

func TestFakeVMEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	w := start(t, fake.Options{})
	w.create("c1", 1, "sleep", "1000")
	w.start("c1")
	if err := w.vm.AttachMount(t.Context(), nil, "c1/rootfs", true, false); err != nil {
		t.Error(err)
	}
	if err := w.vm.AttachMount(t.Context(), nil, "c1/rootfs", true, false); err == nil {
		t.Error("a second mount at the same place was taken")
	}
	if err := syscall.Kill(w.vm.Record().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.vm.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the vm outlives its process")
	}
	if w.vm.ExitReason() == "" {
		t.Error("the end has no reason")
	}
	if _, err := w.vm.Pidfd(); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("a pidfd of a dead vm gives %v", err)
	}
}

func TestFakeAdoptFindsTheLivingOnly(t *testing.T) {
	t.Parallel()
	d := fake.New(fake.Options{})
	dir := t.TempDir()
	v, err := d.Start(t.Context(), hypervisor.Spec{ID: "a", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := hypervisor.LoadRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.Adopt(t.Context(), rec); err != nil || again != v {
		t.Errorf("adopting gives %v, %v", again, err)
	}
	if err := v.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Adopt(t.Context(), rec); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("adopting a dead vm gives %v", err)
	}
}
