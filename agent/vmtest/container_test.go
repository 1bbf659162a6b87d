// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"bulkhead/agent/vmtest"
	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(vmtest.BuildDir)
	os.Exit(code)
}

// patience is for one step under software emulation on a busy machine.
const patience = 30 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// call asks the agent and fails the test when it refuses.
func call[Resp any, P interface {
	*Resp
	proto.Message
}](t testing.TB, vm *vmtest.VM, method string, req proto.Message) P {
	t.Helper()
	reply, err := ask[Resp, P](t, vm, method, req)
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return reply
}

func ask[Resp any, P interface {
	*Resp
	proto.Message
}](t testing.TB, vm *vmtest.VM, method string, req proto.Message) (P, error) {
	return bus.CallAgent[Resp, P](within(t), vm.Conn, vmtest.Sandbox, method, req)
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

type ctr struct {
	*vmtest.Relay
	vm  *vmtest.VM
	key string
}

// create makes a container of Docker's shape.
func create(t testing.TB, vm *vmtest.VM, key string, p *specs.Process, change ...func(*specs.Spec)) *ctr {
	t.Helper()
	c, err := tryCreate(t, vm, key, p, change...)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return c
}

func tryCreate(t testing.TB, vm *vmtest.VM, key string, p *specs.Process, change ...func(*specs.Spec)) (*ctr, error) {
	t.Helper()
	spec := dockerSpec(t, p)
	for _, f := range change {
		f(spec)
	}
	relay := vm.NewRelay()
	_, err := ask[agentv1.CreateReply](t, vm, "create", &agentv1.CreateRequest{
		Container: key, Config: marshal(t, spec), Channel: relay.Channel, Rootfs: busyboxRootfs(t, vm, key),
	})
	return &ctr{Relay: relay, vm: vm, key: key}, err
}

func (c *ctr) start(t testing.TB) {
	t.Helper()
	call[agentv1.StartReply](t, c.vm, "start", &agentv1.StartRequest{Container: c.key})
}

func (c *ctr) signal(t testing.TB, n int32) {
	t.Helper()
	call[agentv1.SignalReply](t, c.vm, "signal", &agentv1.SignalRequest{Container: c.key, Signal: n})
}

func (c *ctr) delete(t testing.TB) {
	t.Helper()
	call[agentv1.DeleteReply](t, c.vm, "delete", &agentv1.DeleteRequest{Container: c.key})
}

func (c *ctr) exec(t testing.TB, id string, p *specs.Process) *vmtest.Relay {
	t.Helper()
	relay, err := c.tryExec(t, id, p)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return relay
}

func (c *ctr) tryExec(t testing.TB, id string, p *specs.Process) (*vmtest.Relay, error) {
	t.Helper()
	relay := c.vm.NewRelay()
	_, err := ask[agentv1.ExecReply](t, c.vm, "exec", &agentv1.ExecRequest{
		Container: c.key, ExecId: id, Process: marshal(t, p), Channel: relay.Channel,
	})
	return relay, err
}

func exit(t testing.TB, r *vmtest.Relay) int {
	t.Helper()
	code, err := r.Wait(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func TestPhases(t *testing.T) {
	vm := vmtest.Boot(t)
	status := call[agentv1.StatusReply](t, vm, "status", &agentv1.StatusRequest{})
	t.Logf("memory: %d MiB of which free %d MiB", status.GetMemoryTotal()>>20, status.GetMemoryFree()>>20)
	t.Logf("QEMU start -> agent main (guest clock) %v, linked %v, ready %v", vm.Phase.Agent, vm.Phase.Linked, vm.Phase.Ready)
	for i := range 3 {
		begin := time.Now()
		c := create(t, vm, fmt.Sprintf("c%d", i), process("true"))
		created := time.Now()
		c.start(t)
		started := time.Now()
		code := exit(t, c.Relay)
		exited := time.Now()
		c.delete(t)
		t.Logf("run %d: create %v, start %v, exit %v (code %d), delete %v", i, created.Sub(begin), started.Sub(created), exited.Sub(started), code, time.Since(exited))
		if code != 0 {
			t.Errorf("true ended with %d: %q", code, c.ErrOutput())
		}
	}
}

func TestAgentThatCannotGoOnPowersOff(t *testing.T) {
	const want = "reading the agent's SELinux domain"
	if got := vmtest.RunToEnd(t, "lsm=selinux selinux=0"); !strings.Contains(got, want) || strings.Contains(got, "Kernel panic") {
		t.Errorf("the console says:\n%s\nwant %q and no panic", got, want)
	}
}
