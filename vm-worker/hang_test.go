// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
)

// soon is what an answer that asks no guest may take on a busy machine: less than the ten seconds for which a guest that hangs is waited for.
const soon = 8 * time.Second

// hanging wraps a VM whose agent can be made to hang: it stays connected, and
// neither hears nor says anything.
type hanging struct {
	hypervisor.VM
	once sync.Once
	hung chan struct{}

	ending sync.Once
	ended  chan struct{} // closed when its monitor does, a moment before its process ends

	slow atomic.Pointer[slowKill] // nil: it is killed at once
}

// slowKill holds up the killing of a VM until it is released.
type slowKill struct {
	once            sync.Once
	begun, released chan struct{}
}

func (v *hanging) Kill(ctx context.Context) error {
	if k := v.slow.Load(); k != nil {
		k.once.Do(func() { close(k.begun) })
		<-k.released
	}
	v.ending.Do(func() {
		close(v.ended)
		time.Sleep(50 * time.Millisecond)
	})
	return v.VM.Kill(ctx)
}

// NICs does not answer either, until the VM is killed.
func (v *hanging) NICs(ctx context.Context) ([]hypervisor.PluggedNIC, error) {
	select {
	case <-v.hung:
	default:
		return v.VM.NICs(ctx)
	}
	select {
	case <-v.ended:
		return nil, fmt.Errorf("its monitor is closed: %w", hypervisor.ErrEnding)
	case <-v.Done():
		return nil, fmt.Errorf("its monitor is closed: %w", hypervisor.ErrEnding)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (v *hanging) hang() { v.once.Do(func() { close(v.hung) }) }

func (v *hanging) DialCtl(ctx context.Context) (net.Conn, error) {
	conn, err := v.VM.DialCtl(ctx)
	if err != nil {
		return nil, err
	}
	return &hangingConn{Conn: conn, vm: v, closed: make(chan struct{})}, nil
}

type hangingConn struct {
	net.Conn
	vm     *hanging
	once   sync.Once
	closed chan struct{}
}

func (c *hangingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	select {
	case <-c.vm.hung:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *hangingConn) Write(b []byte) (int, error) {
	select {
	case <-c.vm.hung:
		return len(b), nil
	default:
		return c.Conn.Write(b)
	}
}

func (c *hangingConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// within runs do and fails when it takes longer than limit.
func within(t *testing.T, what string, limit time.Duration, do func()) {
	t.Helper()
	began := time.Now()
	do()
	if took := time.Since(began); took > limit {
		t.Errorf("%s took %v", what, took)
	}
}

func TestStateAndListNeverWaitForAGuest(t *testing.T) {
	h := newHost(t, fake.Options{})
	h.create("c1", "sleep")
	h.driver.hangAll()
	started := make(chan error, 1)
	go func() { // holds the container's lock, waiting for the agent
		_, err := call[vmv1.StartReply](t.Context(), h, "start", &vmv1.StartRequest{Ref: ref("c1")})
		started <- err
	}()
	for range 3 {
		within(t, "state", soon, func() { h.expectStatus("c1", created) })
		within(t, "list", soon, func() { h.list() })
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := call[vmv1.KillReply](ctx, h, "kill", &vmv1.KillRequest{Ref: ref("c1"), Signal: 15})
	if bus.ReasonOf(err) != bus.DeadlineExceeded {
		t.Errorf("a signal for an agent that hangs gives %v", err)
	}
	// What must die dies, and takes the command that waits with it.
	within(t, "delete --force", 30*time.Second, func() { h.delete("c1", true) })
	if err := <-started; err == nil {
		t.Error("start of a deleted container succeeded")
	}
	h.expectNothing()
}

func TestStateAnswersWhileAGuestBoots(t *testing.T) {
	h := newHost(t, fake.Options{Mute: true})
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	req := h.request(ctx, "c1", r, h.bundle("c1", "true"))
	failed := make(chan error, 1)
	go func() {
		_, err := call[vmv1.CreateReply](ctx, h, "create", req)
		failed <- err
	}()
	h.awaitVM()
	within(t, "state", soon, func() { h.expectStatus("c1", vmv1.ContainerStatus_CONTAINER_STATUS_CREATING) })
	within(t, "list", soon, func() { h.list() })
	for what, do := range map[string]func() error{
		"start": func() error {
			_, err := call[vmv1.StartReply](t.Context(), h, "start", &vmv1.StartRequest{Ref: ref("c1")})
			return err
		},
		"kill": func() error {
			_, err := call[vmv1.KillReply](t.Context(), h, "kill", &vmv1.KillRequest{Ref: ref("c1"), Signal: 9})
			return err
		},
		"delete": func() error {
			_, err := call[vmv1.DeleteReply](t.Context(), h, "delete", &vmv1.DeleteRequest{Ref: ref("c1")})
			return err
		},
	} {
		within(t, what, soon, func() { refused(t, what, do(), bus.FailedPrecondition, "creat") })
	}
	h.delete("c1", true)
	if err := <-failed; err == nil {
		t.Error("create of a deleted container succeeded")
	}
	h.expectNothing()
}

func TestSIGKILLNeedsNoAgent(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := h.run("c1", "sleep")
	h.driver.hangAll()
	h.kill("c1", 9)
	r.expectCode(137)
	h.await("c1", "exited")
	h.delete("c1", false)
	h.expectNothing()
}

// A worker that stops in the middle of a create undoes it.
func TestAStopUndoesTheCreateUnderWay(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the time a stopping worker gives to commands under way")
	}
	h := newHost(t, fake.Options{Mute: true})
	r := startRelay(t, h.bus.RunDir)
	ctx, cancel := context.WithTimeout(operation(t), 2*time.Second) // its deadline ends it before the worker's patience does
	defer cancel()
	req := h.request(ctx, "c1", r, h.bundle("c1", "true"))
	failed := make(chan error, 1)
	go func() {
		_, err := call[vmv1.CreateReply](ctx, h, "create", req)
		failed <- err
	}()
	h.awaitVM()
	h.stop()
	if err := <-failed; err == nil {
		t.Error("the create succeeded")
	}
	r.expectEnded()
	h.expectNoTrace()
}
