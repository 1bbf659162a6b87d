// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

// Engines find out what happened by looking for these words.
func TestRefusalsAreInTheWordsThatEnginesMatch(t *testing.T) {
	h := newHost(t, fake.Options{})
	h.create("created", "sleep")
	h.run("running", "sleep")
	h.run("paused", "sleep")
	if _, err := call[vmv1.PauseReply](t.Context(), h, "pause", &vmv1.PauseRequest{Ref: ref("paused")}); err != nil {
		t.Fatal(err)
	}
	over := h.run("stopped", "exit", "0")
	over.expectCode(0)
	h.await("stopped", "exited")
	other := startRelay(t, h.bus.RunDir)

	state := func(id string) error {
		_, err := call[vmv1.StateReply](t.Context(), h, "state", &vmv1.StateRequest{Ref: ref(id)})
		return err
	}
	start := func(id string) error {
		_, err := call[vmv1.StartReply](t.Context(), h, "start", &vmv1.StartRequest{Ref: ref(id)})
		return err
	}
	remove := func(id string) error {
		_, err := call[vmv1.DeleteReply](t.Context(), h, "delete", &vmv1.DeleteRequest{Ref: ref(id)})
		return err
	}
	kill := func(id string) error {
		_, err := call[vmv1.KillReply](t.Context(), h, "kill", &vmv1.KillRequest{Ref: ref(id), Signal: 15})
		return err
	}
	pause := func(id string) error {
		_, err := call[vmv1.PauseReply](t.Context(), h, "pause", &vmv1.PauseRequest{Ref: ref(id)})
		return err
	}
	resume := func(id string) error {
		_, err := call[vmv1.ResumeReply](t.Context(), h, "resume", &vmv1.ResumeRequest{Ref: ref(id)})
		return err
	}
	update := func(id string) error {
		_, err := call[vmv1.UpdateReply](t.Context(), h, "update", &vmv1.UpdateRequest{Ref: ref(id), Resources: `{"pids":{"limit":9}}`})
		return err
	}
	exec := func(id string) error {
		_, err := call[vmv1.ExecReply](t.Context(), h, "exec", execRequest(id, "e", other, "true"))
		return err
	}
	create := func(id string) error {
		ctx := operation(t)
		_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, id, other, h.bundle(id, "true")))
		return err
	}
	for _, c := range []struct {
		what   string
		do     func(string) error
		id     string
		reason bus.Reason
		text   string
	}{
		{"state", state, "none", bus.NotFound, "container does not exist"},
		{"start", start, "none", bus.NotFound, "container does not exist"},
		{"delete", remove, "none", bus.NotFound, "container does not exist"},
		{"kill", kill, "none", bus.NotFound, "container does not exist"},
		{"exec", exec, "none", bus.NotFound, "container does not exist"},
		{"create", create, "created", bus.AlreadyExists, "container with given ID already exists"},
		{"create", create, "stopped", bus.AlreadyExists, "container with given ID already exists"},
		{"start", start, "running", bus.FailedPrecondition, "cannot start an already running container"},
		{"start", start, "stopped", bus.FailedPrecondition, "cannot start a container that has stopped"},
		{"kill", kill, "stopped", bus.FailedPrecondition, "container not running"},
		{"start", start, "paused", bus.FailedPrecondition, "cannot start a container in the paused state"},
		{"pause", pause, "stopped", bus.FailedPrecondition, "container not running"},
		{"update", update, "none", bus.NotFound, "container does not exist"},
		{"update", update, "stopped", bus.FailedPrecondition, "container not running"},
		{"resume", resume, "running", bus.FailedPrecondition, "container not paused"},
		{"delete", remove, "running", bus.FailedPrecondition, "cannot delete container running that is not stopped: running"},
		{"delete", remove, "paused", bus.FailedPrecondition, "cannot delete container paused that is not stopped: paused"},
		{"exec", exec, "stopped", bus.FailedPrecondition, "cannot exec in a stopped container"},
		{"exec", exec, "paused", bus.FailedPrecondition, "cannot exec in a paused container (use --ignore-paused to override)"},
	} {
		refused(t, c.what+" of "+c.id, c.do(c.id), c.reason, c.text)
	}
	if _, err := call[vmv1.KillReply](t.Context(), h, "kill", &vmv1.KillRequest{Ref: ref("stopped"), Signal: 9, All: true}); err != nil {
		t.Errorf("an engine's sweep after the end gives %v", err)
	}
	if _, err := call[vmv1.DeleteReply](t.Context(), h, "delete", &vmv1.DeleteRequest{Ref: ref("none"), Force: true}); err != nil {
		t.Errorf("delete --force of nothing gives %v", err)
	}
	other.discard()
	h.delete("created", false) // one that never ran needs no force
	h.delete("running", true)
	h.delete("paused", true)
	h.delete("stopped", false)
	h.expectNothing()
}

func TestStartAndDeleteActOncePerOperation(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := h.create("c1", "sleep")
	ctx := operation(t)
	for range 2 {
		reply, err := call[vmv1.StartReply](ctx, h, "start", &vmv1.StartRequest{Ref: ref("c1")})
		if err != nil || reply.Container.GetStatus() != running {
			t.Errorf("start gives %v, %v", reply, err)
		}
	}
	_, err := call[vmv1.StartReply](t.Context(), h, "start", &vmv1.StartRequest{Ref: ref("c1")})
	refused(t, "another start", err, bus.FailedPrecondition, "cannot start an already running container")
	_, err = call[vmv1.DeleteReply](ctx, h, "delete", &vmv1.DeleteRequest{Ref: ref("c1"), Force: true})
	refused(t, "the start's operation used for a delete", err, bus.InvalidArgument, "already used for a different request")

	ctx = operation(t)
	replies := make(chan error, 3)
	for range cap(replies) {
		go func() {
			reply, err := call[vmv1.DeleteReply](ctx, h, "delete", &vmv1.DeleteRequest{Ref: ref("c1"), Force: true})
			if err == nil && (!reply.Existed || reply.Container.GetRef().GetId() != "c1") {
				err = bus.Errorf(bus.Internal, "a repeat answers %v", reply)
			}
			replies <- err
		}()
	}
	for range cap(replies) {
		if err := <-replies; err != nil {
			t.Error(err)
		}
	}
	r.expectCode(137)
	_, err = call[vmv1.DeleteReply](t.Context(), h, "delete", &vmv1.DeleteRequest{Ref: ref("c1")})
	refused(t, "another delete", err, bus.NotFound, "container does not exist")
	h.expectNothing()
}

func TestKillActsAtMostOncePerOperation(t *testing.T) {
	signals := make(chan int, 16)
	h := newHost(t, fake.Options{Script: func(ctx context.Context, p fake.Process) int {
		for {
			select {
			case n := <-p.Signals:
				signals <- n
			case <-ctx.Done():
				return 0
			}
		}
	}})
	h.run("c1", "counts")
	ctx := operation(t)
	for range 3 {
		if _, err := call[vmv1.KillReply](ctx, h, "kill", &vmv1.KillRequest{Ref: ref("c1"), Signal: 15}); err != nil {
			t.Fatal(err)
		}
	}
	h.kill("c1", 10) // comes after all the others
	if got := []int{<-signals, <-signals}; !slices.Equal(got, []int{15, 10}) {
		t.Errorf("the process got the signals %v", got)
	}
	ctx = operation(t)
	for range 2 { // the second finds the container dead, and must not say so
		if _, err := call[vmv1.KillReply](ctx, h, "kill", &vmv1.KillRequest{Ref: ref("c1"), Signal: 9}); err != nil {
			t.Error(err)
		}
		h.await("c1", "exited")
	}
	h.delete("c1", false)
	h.expectNothing()
}

func TestExecActsOncePerRelay(t *testing.T) {
	h := newHost(t, fake.Options{})
	h.run("c1", "sleep")
	r := startRelay(t, h.bus.RunDir)
	req := execRequest("c1", "e1", r, "cat")
	channels := map[uint32]bool{}
	for range 2 {
		reply, err := call[vmv1.ExecReply](t.Context(), h, "exec", req)
		if err != nil {
			t.Fatal(err)
		}
		channels[reply.Channel] = true
	}
	if len(channels) != 1 {
		t.Errorf("one exec has the channels %v", channels)
	}
	other := startRelay(t, h.bus.RunDir)
	_, err := call[vmv1.ExecReply](t.Context(), h, "exec", execRequest("c1", "e1", other, "true"))
	refused(t, "another exec of the same id", err, bus.AlreadyExists, "exec e1 already exists in container c1")
	other.discard()
	r.stdin.Close()
	r.expectCode(42)
	if ev := h.await("c1", "exec_exited"); ev.Attributes["exit_code"] != "42" || ev.Attributes["exec"] != "e1" {
		t.Errorf("the event says %v", ev.Attributes)
	}
	again := h.exec("c1", "e1", "exit", "3") // the id is free again
	again.expectCode(3)
	h.delete("c1", true)
	h.expectNothing()
}

// A killed exec relay takes its process in the guest with it, and only that.
func TestAKilledExecRelayTakesItsProcess(t *testing.T) {
	h, ended := newSleepers(t)
	h.run("c1", "init")
	r := h.exec("c1", "e1", "beside")
	r.kill()
	expectEnd(t, ended, "e1")
	h.await("c1", "exec_exited")
	h.expectStatus("c1", running)
	h.delete("c1", true)
	h.expectNothing()
}

// newSleepers is a host whose processes live until they are killed, and then say which exec they are.
func newSleepers(t *testing.T) (h *host, ended <-chan string) {
	told := make(chan string, 4)
	return newHost(t, fake.Options{Script: func(ctx context.Context, p fake.Process) int {
		<-ctx.Done()
		told <- p.ExecID
		return 0
	}}), told
}

// expectEnd waits until the process of an exec says that it ends.
func expectEnd(t *testing.T, ended <-chan string, exec string) {
	t.Helper()
	select {
	case id := <-ended:
		if id != exec {
			t.Errorf("process %q ended", id)
		}
	case <-time.After(patience):
		t.Fatal("the exec's process lives on")
	}
}

// processCgroup is where a container's processes on the host are, and the root above it.
func (h *host) processCgroup(id string) (root, dir string) {
	root = "/sys/fs/cgroup/pids"
	if _, err := os.Stat(root + h.cgroups + "/" + id); err != nil {
		root = "/sys/fs/cgroup"
	}
	return root, root + h.cgroups + "/" + id
}

// An exec whose relay cannot be moved into the container's cgroup has failed, also when its process runs by then.
func TestAnExecOutsideItsCgroupIsUndone(t *testing.T) {
	h, ended := newSleepers(t)
	h.run("c1", "init")
	root, cgroup := h.processCgroup("c1")
	members, err := os.ReadFile(cgroup + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range strings.Fields(string(members)) {
		if err := os.WriteFile(root+"/cgroup.procs", []byte(pid), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(cgroup); err != nil {
		t.Fatal(err)
	}
	r := startRelay(t, h.bus.RunDir)
	_, err = call[vmv1.ExecReply](t.Context(), h, "exec", execRequest("c1", "e1", r, "beside"))
	refused(t, "an exec without a cgroup", err, bus.Internal, "into the cgroup")
	expectEnd(t, ended, "e1")
	h.await("c1", "exec_exited")
	h.expectStatus("c1", running)
	h.delete("c1", true)
	h.expectNothing()
}

// A worker that dies while an exec's relay is on its way into the cgroup leaves it to the next.
func TestAnExecOutsideItsCgroupIsTakenInByTheNextWorker(t *testing.T) {
	h := newHost(t, fake.Options{})
	h.run("c1", "sleep")
	r := h.exec("c1", "e1", "cat")
	root, cgroup := h.processCgroup("c1")
	relay := strconv.Itoa(int(r.identity().Pid))
	inside := func() bool {
		members, err := os.ReadFile(cgroup + "/cgroup.procs")
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(strings.Fields(string(members)), relay)
	}
	if !inside() {
		t.Fatal("the relay is not in the cgroup at all")
	}
	h.stop()
	if err := os.WriteFile(root+"/cgroup.procs", []byte(relay), 0); err != nil {
		t.Fatal(err)
	}
	h.serve()
	eventually(t, "the relay is in the cgroup again", inside)
	r.stdin.Close()
	r.expectCode(42)
	h.await("c1", "exec_exited")
	h.delete("c1", true)
	h.expectNothing()
}

func TestTheEndIsToldAsItWas(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    func(h *host, r *relay)
		code   int
		reason string // begins the recorded reason

		vmFirst bool // the end of the VM is the cause
	}{
		{"its own exit", func(_ *host, r *relay) { r.stdin.Close() }, 42, "", false},
		{"a signal through the service", func(h *host, _ *relay) { h.kill("c1", 15) }, 143, "", false},
		{"a signal to the relay", func(_ *host, r *relay) { kill15(r) }, 143, "", false},
		{"SIGKILL", func(h *host, _ *relay) { h.kill("c1", 9) }, 137, "", false},
		{"its relay was killed", func(_ *host, r *relay) { r.kill() }, 137, "its relay on the host was killed", false},
		{"its VM was killed", func(h *host, _ *relay) { kill9(h.t, h.vms()[0]) }, 137, "the fake vm's process ended", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, fake.Options{})
			r := h.run("c1", "cat")
			c.end(h, r)
			r.expectCode(c.code)
			ev := h.await("c1", "exited")
			exit := h.state("c1").Exit
			if exit.GetCode() != int32(c.code) || !strings.HasPrefix(exit.GetReason(), c.reason) || c.reason == "" && exit.GetReason() != "" {
				t.Errorf("the record says %v, want %d and %q", exit, c.code, c.reason)
			}
			if ev.Attributes["reason"] != exit.GetReason() {
				t.Errorf("the event says %q and the record %q", ev.Attributes["reason"], exit.GetReason())
			}
			h.awaitThat("the end of the VM", func(ev *busv1.Event) bool { return ev.Kind == "sandbox" && ev.Event == "stopped" })
			h.expectRecordsAgree()
			h.delete("c1", false)
			h.await("c1", "deleted")
			want := []string{
				"container.creating", "sandbox.starting", "sandbox.running", "container.created", "container.started",
				"container.exited", "sandbox.stopped", "sandbox.removed", "container.deleted",
			}
			if c.vmFirst {
				want[5], want[6] = want[6], want[5]
			}
			got := slices.DeleteFunc(h.told(), func(e string) bool { return e == "container.signalled" })
			if !slices.Equal(got, want) {
				t.Errorf("the events are\n%v, want\n%v", got, want)
			}
			h.expectNothing()
		})
	}
}

func TestManyContainersComeAndGoAtOnce(t *testing.T) {
	h := newHost(t, fake.Options{})
	ids := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	relays := map[string]*relay{}
	done := make(chan error, len(ids))
	for _, id := range ids {
		r := startRelay(t, h.bus.RunDir)
		relays[id] = r
		ctx := operation(t)
		req := h.request(ctx, id, r, h.bundle(id, "exit", "9"))
		go func() {
			_, err := call[vmv1.CreateReply](ctx, h, "create", req)
			if err == nil {
				r.commit()
				_, err = call[vmv1.StartReply](t.Context(), h, "start", &vmv1.StartRequest{Ref: ref(id)})
			}
			done <- err
		}()
	}
	for range ids {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, id := range ids {
		relays[id].expectCode(9)
		h.await(id, "exited")
		h.delete(id, false)
	}
	h.expectNothing()
}

// What could not be removed keeps its record, so that a delete can be repeated.
func TestADeleteThatFailsCanBeRepeated(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := h.run("c1", "sleep")
	cgroup := "/sys/fs/cgroup/pids" + h.cgroups + "/c1"
	if _, err := os.Stat(cgroup); err != nil {
		cgroup = "/sys/fs/cgroup" + h.cgroups + "/c1"
	}
	squatter := exec.Command("sleep", "1000")
	if err := squatter.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = squatter.Process.Kill(); _ = squatter.Wait() })
	if err := os.WriteFile(cgroup+"/cgroup.procs", []byte(strconv.Itoa(squatter.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	h.kill("c1", 9)
	r.expectCode(137)
	h.await("c1", "exited")
	_, err := call[vmv1.DeleteReply](t.Context(), h, "delete", &vmv1.DeleteRequest{Ref: ref("c1")})
	refused(t, "a delete whose cgroup is in use", err, bus.Internal, "still has processes")
	h.expectStatus("c1", stopped)
	h.expectRecordsAgree()
	_ = squatter.Process.Kill()
	_ = squatter.Wait()
	h.delete("c1", false)
	h.expectNothing()
}

// runc lets a created container be paused; resumed, it waits for its start as before.
func TestACreatedContainerCanBePaused(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := h.create("c1", "exit", "3")
	if _, err := call[vmv1.PauseReply](t.Context(), h, "pause", &vmv1.PauseRequest{Ref: ref("c1")}); err != nil {
		t.Fatal(err)
	}
	h.expectStatus("c1", vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED)
	h.restart()
	h.expectStatus("c1", vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED)
	if _, err := call[vmv1.ResumeReply](t.Context(), h, "resume", &vmv1.ResumeRequest{Ref: ref("c1")}); err != nil {
		t.Fatal(err)
	}
	h.expectStatus("c1", vmv1.ContainerStatus_CONTAINER_STATUS_CREATED)
	h.start("c1")
	r.expectCode(3)
	h.await("c1", "exited")
	h.delete("c1", false)
	h.expectNothing()
}
