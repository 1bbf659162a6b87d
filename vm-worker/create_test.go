// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	"bulkhead/bus/config"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
)

// attempt is a create that is to fail.
type attempt struct {
	h     *host
	relay *relay
	spec  *specs.Spec
	req   *vmv1.CreateRequest
	ctx   context.Context
}

func TestCreateRollsBackAtEveryStep(t *testing.T) {
	broken := errors.New("broken for the test")
	for _, c := range []struct {
		name    string
		options fake.Options
		boot    time.Duration  // boot_timeout, long where it is 0
		prepare func(*attempt) // before the request is sent
		during  func(*attempt) // while the guest boots
		says    string
		spared  bool // the relay is not the worker's to end
	}{
		{name: "mounts never handed over", prepare: func(a *attempt) { a.req.Handover = "another" }, says: "nothing was handed over", spared: true},
		{name: "relay already dead", prepare: func(a *attempt) { a.relay.kill(); a.relay.expectEnded() }, says: "relay"},
		{name: "relay's pid is another's", prepare: func(a *attempt) { a.req.Relay.StartTime++ }, says: "relay", spared: true},
		{name: "cgroup", prepare: func(a *attempt) { a.req.SystemdCgroup = true }, says: "cgroup"},
		{name: "a limit that the host refuses", prepare: func(a *attempt) { // a device that it does not have
			a.req.Config = strings.Replace(a.req.Config, `"linux":{`, `"linux":{"resources":{"blockIO":{"throttleReadBpsDevice":[{"major":4000,"minor":1,"rate":1}]}},`, 1)
		}, says: "setting the limits"},
		{name: "VM does not start", options: fake.Options{StartError: func(hypervisor.Spec) error { return broken }}, says: broken.Error()},
		{name: "agent never speaks", options: fake.Options{Mute: true}, boot: 200 * time.Millisecond, says: "boot_timeout"},
		{name: "mount not attached", options: fake.Options{AttachError: func(string) error { return broken }}, says: broken.Error()},
		{name: "mount without a descriptor", prepare: func(a *attempt) { a.req.Mounts[0].Index = 7 }, says: "names descriptor 7 of 1"},
		{name: "disk not attached", options: fake.Options{DiskError: func(hypervisor.Disk) error { return broken }}, prepare: func(a *attempt) {
			a.req.Devices = []*vmv1.HandedDevice{{Major: 7, Minor: 1}}
		}, says: "give block device 7:1 to the VM: attaching disk"},
		{name: "disk without a descriptor", prepare: func(a *attempt) { a.req.Devices = []*vmv1.HandedDevice{{Index: 7}} }, says: "names descriptor 7 of 1"},
		{name: "relay not reachable", prepare: func(a *attempt) { a.req.Relay.Socket += ".none" }, says: "attach the relay"},
		{name: "agent refuses the container", prepare: func(a *attempt) { a.req.Config = strings.Replace(a.req.Config, `["true"]`, `[]`, 1) }, says: "names no process"},
		{name: "relay dies", options: fake.Options{Mute: true}, during: func(a *attempt) { a.relay.kill() }, says: "the caller has gone away"},
		{name: "frontend dies", options: fake.Options{Mute: true}, during: func(a *attempt) { a.relay.vanish() }, says: "the caller has gone away"},
		{name: "VM dies", options: fake.Options{Mute: true}, during: func(a *attempt) {
			for _, pid := range a.h.vms() {
				kill9(a.h.t, pid)
			}
		}, says: "the VM ended before its agent was ready"},
		{name: "delete --force", options: fake.Options{Mute: true}, during: func(a *attempt) { a.h.delete("c1", true) }, says: "deleted while it was being created"},
		{name: "deadline of the caller", options: fake.Options{Mute: true}, prepare: func(a *attempt) {
			ctx, cancel := context.WithTimeout(a.ctx, time.Second)
			a.h.t.Cleanup(cancel)
			a.ctx = ctx
		}, says: ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, c.options, func(vm *config.VM) {
				if c.boot != 0 {
					vm.BootTimeout.Duration = c.boot
				}
			})
			a := &attempt{h: h, relay: startRelay(t, h.bus.RunDir), spec: h.bundle("c1", "true"), ctx: operation(t)}
			a.req = h.request(a.ctx, "c1", a.relay, a.spec)
			if c.prepare != nil {
				c.prepare(a)
			}
			failed := make(chan error, 1)
			go func() {
				_, err := call[vmv1.CreateReply](a.ctx, h, "create", a.req)
				failed <- err
			}()
			if c.during != nil {
				h.awaitVM()
				c.during(a)
			}
			err := <-failed
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("create gives %v, want %q", err, c.says)
			}
			h.await("c1", "create_failed") // the caller may have gone before
			if c.spared {
				a.relay.kill()
			}
			a.relay.expectEnded()
			os.Remove(a.relay.socket) // where the request named another
			h.expectNothing()
		})
	}
}

func TestAFailedCreateLeavesItsNameFree(t *testing.T) {
	fail := true
	h := newHost(t, fake.Options{AttachError: func(string) error {
		if fail {
			return errors.New("broken for the test")
		}
		return nil
	}})
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	if _, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "c1", r, h.bundle("c1", "true"))); err == nil {
		t.Fatal("create succeeded")
	}
	fail = false
	again := h.run("c1", "exit", "3")
	again.expectCode(3)
	h.await("c1", "exited")
	h.delete("c1", false)
	h.expectNothing()
}

func TestACreatedContainerWhoseCallerVanishedIsRemoved(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	if _, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "c1", r, h.bundle("c1", "true"))); err != nil {
		t.Fatal(err)
	}
	r.vanish() // before the pid-file: no engine knows of the container
	r.expectEnded()
	h.await("c1", "deleted")
	h.expectNothing()
}

func TestCreateActsOncePerOperation(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	req := h.request(ctx, "c1", r, h.bundle("c1", "sleep"))
	type answer struct {
		reply *vmv1.CreateReply
		err   error
	}
	answers := make(chan answer, 3)
	for range 3 {
		go func() {
			reply, err := call[vmv1.CreateReply](ctx, h, "create", req)
			answers <- answer{reply, err}
		}()
	}
	sandbox := ""
	for range 3 {
		a := <-answers
		if a.err != nil {
			t.Fatal(a.err)
		}
		if sandbox == "" {
			sandbox = a.reply.Sandbox.Id
		}
		if a.reply.Sandbox.Id != sandbox {
			t.Errorf("one operation made sandboxes %s and %s", sandbox, a.reply.Sandbox.Id)
		}
	}
	if again, err := call[vmv1.CreateReply](ctx, h, "create", req); err != nil || again.Sandbox.Id != sandbox {
		t.Errorf("a late repeat gives %v, %v", again, err)
	}
	other := startRelay(t, h.bus.RunDir)
	otherCtx := operation(t)
	_, err := call[vmv1.CreateReply](otherCtx, h, "create", h.request(otherCtx, "c1", other, h.bundle("c1", "true")))
	refused(t, "another create", err, bus.AlreadyExists, "container with given ID already exists")
	if l := h.list(); len(l.Containers) != 1 || len(l.Sandboxes) != 1 {
		t.Errorf("the worker lists %v", l)
	}
	other.discard()
	r.commit()
	h.delete("c1", true)
	r.expectEnded()
}

func TestVMsAreBounded(t *testing.T) {
	h := newHost(t, fake.Options{}, func(vm *config.VM) { vm.MaxVMs = 1 })
	h.create("c1", "true")
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "c2", r, h.bundle("c2", "true")))
	refused(t, "one VM more than max_vms", err, bus.ResourceExhausted, "max_vms")
	r.discard()
	h.kill("c1", 9) // its record stays, its VM does not
	h.await("c1", "exited")
	h.awaitThat("the end of the VM", func(ev *busv1.Event) bool { return ev.Kind == "sandbox" && ev.Event == "stopped" })
	h.create("c2", "true")
	h.delete("c1", false)
	h.delete("c2", true)
	h.expectNothing()
}
