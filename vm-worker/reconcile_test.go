// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

const (
	created = vmv1.ContainerStatus_CONTAINER_STATUS_CREATED
	running = vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
	paused  = vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED
	stopped = vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED
)

// expectRecordsAgree compares what the service answers, the KV buckets and the
// files.
func (h *host) expectRecordsAgree() {
	h.t.Helper()
	l := h.list()
	if n := len(h.keys(bus.BucketContainers)); n != len(l.Containers) {
		h.t.Errorf("bucket containers holds %d records, the worker %d", n, len(l.Containers))
	}
	if n := len(h.keys(bus.BucketSandboxes)); n != len(l.Sandboxes) {
		h.t.Errorf("bucket sandboxes holds %d records, the worker %d", n, len(l.Sandboxes))
	}
	for _, c := range l.Containers {
		agree(h, bus.BucketContainers, c.Key, filepath.Join(c.Sandbox, "container-"+c.Key+".json"), c, &vmv1.Container{})
	}
	for _, s := range l.Sandboxes {
		agree(h, bus.BucketSandboxes, s.Id, filepath.Join(s.Id, "sandbox.json"), s, &vmv1.Sandbox{})
	}
}

func agree[T proto.Message](h *host, bucket, key, file string, told, onDisk T) {
	h.t.Helper()
	b, err := bus.OpenBucket[T](h.t.Context(), h.conn, bucket)
	if err != nil {
		h.t.Fatal(err)
	}
	published, _, err := b.Get(h.t.Context(), key)
	if err != nil {
		h.t.Errorf("record %s/%s: %v", bucket, key, err)
		return
	}
	if !proto.Equal(published, told) {
		h.t.Errorf("bucket %s says\n%v\nand the worker\n%v", bucket, published, told)
	}
	text, err := os.ReadFile(filepath.Join(h.bus.RunDir, "vm", file))
	if err == nil {
		err = protojson.Unmarshal(text, onDisk)
	}
	if err != nil {
		h.t.Error(err)
	} else if !proto.Equal(onDisk, told) {
		h.t.Errorf("file %s says\n%v\nand the worker\n%v", file, onDisk, told)
	}
}

func TestContainersSurviveAStopOfTheWorker(t *testing.T) {
	h := newHost(t, fake.Options{})
	survive(t, h, h.restart)
}

func TestContainersSurviveTheDeathOfTheWorker(t *testing.T) {
	h := newBus(t)
	kill := h.serveChild(fake.Options{})
	survive(t, h, func() {
		kill()
		kill = h.serveChild(fake.Options{})
	})
}

func survive(t *testing.T, h *host, restart func()) {
	fresh := h.create("fresh", "exit", "7")
	cat := h.run("cat", "cat")
	beside := h.exec("cat", "beside", "cat")
	idle := h.run("idle", "sleep")
	if _, err := call[vmv1.PauseReply](t.Context(), h, "pause", &vmv1.PauseRequest{Ref: ref("idle")}); err != nil {
		t.Fatal(err)
	}
	over := h.run("over", "exit", "5")
	over.expectCode(5)
	h.await("over", "exited")
	pid := h.state("cat").Relay.Pid

	restart()

	for id, want := range map[string]vmv1.ContainerStatus{"fresh": created, "cat": running, "idle": paused, "over": stopped} {
		h.expectStatus(id, want)
	}
	if got := h.state("over").Exit.GetCode(); got != 5 {
		t.Errorf("the exit code is remembered as %d", got)
	}
	if s := h.state("cat"); s.Relay.Pid != pid || len(s.Execs) != 1 {
		t.Errorf("the record is now %v", s)
	}
	h.expectRecordsAgree()

	later := h.exec("cat", "later", "exit", "6")
	later.expectCode(6)
	for _, r := range []*relay{beside, cat} {
		if _, err := r.stdin.Write([]byte("still there")); err != nil {
			t.Error(err)
		}
		r.stdin.Close()
		r.expectCode(42)
		if got := r.output.String(); got != "still there" {
			t.Errorf("the output is %q", got)
		}
	}
	h.await("cat", "exited")
	if got := h.state("cat").Exit.GetCode(); got != 42 {
		t.Errorf("the exit code is recorded as %d", got)
	}
	if _, err := call[vmv1.ResumeReply](t.Context(), h, "resume", &vmv1.ResumeRequest{Ref: ref("idle")}); err != nil {
		t.Error(err)
	}
	h.start("fresh")
	fresh.expectCode(7)
	h.await("fresh", "exited")
	h.kill("idle", 15)
	idle.expectCode(128 + 15)
	h.await("idle", "exited")
	for _, id := range []string{"fresh", "cat", "idle", "over"} {
		h.delete(id, false)
	}
	h.expectNothing()
}

// A worker may die at any moment of a create: the next one undoes it.
func TestACreateCutShortIsUndone(t *testing.T) {
	for _, moment := range []string{"creating", "starting", "running", "created"} {
		t.Run(moment, func(t *testing.T) {
			h := newBus(t)
			o := fake.Options{}
			kill := h.serveChild(o)
			r := startRelay(t, h.bus.RunDir)
			ctx, cancel := context.WithCancel(operation(t))
			req := h.request(ctx, "c1", r, h.bundle("c1", "true"))
			answered := make(chan error, 1)
			go func() {
				_, err := call[vmv1.CreateReply](ctx, h, "create", req)
				answered <- err
			}()
			h.await("", moment)
			kill()
			r.vanish() // the frontend hears of it and gives up
			cancel()
			<-answered
			r.expectEnded()
			h.serveChild(o)
			h.await("c1", "deleted")
			h.expectNothing()
		})
	}
}

func TestWhatDiedWhileNoWorkerRanIsTold(t *testing.T) {
	h := newBus(t)
	kill := h.serveChild(fake.Options{})
	lost, orphan := h.run("lost", "sleep"), h.run("orphan", "sleep")
	beside := h.exec("lost", "beside", "sleep")
	kept := h.run("kept", "sleep")
	gone := h.exec("kept", "gone", "sleep")
	var vm int32
	for _, s := range h.list().Sandboxes {
		if s.Id == h.state("lost").Sandbox {
			vm = s.Pid
		}
	}
	kill()
	kill9(t, int(vm)) // lost: its relays hold a handle of the VM
	lost.expectCode(137)
	beside.expectCode(137)
	orphan.kill()
	orphan.expectEnded()
	gone.kill()
	gone.expectEnded()
	h.serveChild(fake.Options{})

	for id, reason := range map[string]string{"lost": "its VM ended while no worker was running", "orphan": "its relay on the host was killed"} {
		h.expectStatus(id, stopped)
		h.await(id, "exited")
		if exit := h.state(id).Exit; exit.GetCode() != 137 || exit.GetReason() != reason {
			t.Errorf("%s ended with %v, want 137 and %q", id, exit, reason)
		}
		h.delete(id, false)
	}
	h.await("kept", "exec_exited")
	h.expectStatus("kept", running)
	if execs := h.state("kept").Execs; len(execs) != 0 {
		t.Errorf("execs %v are recorded", execs)
	}
	h.expectRecordsAgree()
	h.kill("kept", 9)
	kept.expectCode(137)
	h.delete("kept", true)
	h.expectNothing()
}

func TestDamagedAndEmptyDirectoriesAreRemoved(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := h.run("c1", "sleep")
	rec := h.state("c1")
	h.stop()
	vm := filepath.Join(h.bus.RunDir, "vm")
	if err := os.WriteFile(filepath.Join(vm, rec.Sandbox, "container-"+rec.Key+".json"), []byte(`{"ref":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(vm, "vm-empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.serve()
	r.expectEnded() // with the VM, whose record named it no more
	h.expectNothing()
}

// A worker may die between starting a container and recording it.
func TestAStartCutShortIsFoundOut(t *testing.T) {
	h := newBus(t)
	begun := make(chan struct{})
	o := fake.Options{Script: func(ctx context.Context, _ fake.Process) int {
		close(begun)
		<-ctx.Done()
		return 0
	}}
	kill := h.serveChild(o)
	r := h.create("c1", "waits")
	ctx := operation(t)
	asking, cancel := context.WithCancel(ctx)
	answered := make(chan error, 1)
	go func() {
		_, err := call[vmv1.StartReply](asking, h, "start", &vmv1.StartRequest{Ref: ref("c1")})
		answered <- err
	}()
	<-begun
	kill()
	cancel()
	<-answered
	h.serveChild(o)
	reply, err := call[vmv1.StartReply](ctx, h, "start", &vmv1.StartRequest{Ref: ref("c1")})
	if err != nil || reply.Container.GetStatus() != running {
		t.Errorf("the same start again gives %v, %v", reply, err)
	}
	_, err = call[vmv1.StartReply](t.Context(), h, "start", &vmv1.StartRequest{Ref: ref("c1")})
	refused(t, "another start", err, bus.FailedPrecondition, "cannot start an already running container")
	h.expectRecordsAgree()
	h.delete("c1", true)
	r.expectEnded()
	h.expectNothing()
}

// The guest may still know a process whose end the worker before this one has recorded: its number
// on the stdio link is not given to another.
func TestNoChannelNumberIsUsedByTwoWorkers(t *testing.T) {
	h := newHost(t, fake.Options{})
	h.run("c1", "sleep")
	given := map[uint32]bool{h.state("c1").Channel: true}
	for n := 1; n <= 3; n++ {
		id := fmt.Sprintf("e%d", n)
		r := startRelay(t, h.bus.RunDir)
		reply, err := call[vmv1.ExecReply](t.Context(), h, "exec", execRequest("c1", id, r, "exit", "3"))
		if err != nil {
			t.Fatal(err)
		}
		r.commit()
		r.expectCode(3)
		h.awaitThat("the end of "+id, func(ev *busv1.Event) bool { return ev.Event == "exec_exited" && ev.Attributes["exec"] == id })
		if given[reply.Channel] {
			t.Errorf("%s has channel %d, which was another's", id, reply.Channel)
		}
		given[reply.Channel] = true
		h.restart()
	}
	h.expectRecordsAgree()
	h.delete("c1", true)
	h.expectNothing()
}
