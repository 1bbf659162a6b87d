// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/config"
	"bulkhead/bus/handover"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	vmworker "bulkhead/vm-worker"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
)

// patience bounds every wait of these tests; none is expected to come near it.
const patience = 20 * time.Second

// root is the --root under which the tests name their containers.
const root = "/run/test"

// host is a real bus, real relays and a vm worker with a fake hypervisor.
type host struct {
	t      *testing.T
	bus    *bustest.Bus
	conn   *bus.Conn
	driver *observed
	cfg    config.VM

	cgroups string // where the containers have their host cgroups
	before  []int  // fake VMs that are not this test's
	stop    func() // ends the worker as SIGTERM does and waits for it
	mu      sync.Mutex
	events  []*busv1.Event // guarded by mu
	changed chan struct{}  // guarded by mu: closed at the next event
}

// newHost starts a worker. Everything is checked to be gone when the test ends.
func newHost(t *testing.T, o fake.Options, edits ...func(*config.VM)) *host {
	t.Helper()
	h := newBus(t, edits...)
	h.driver = &observed{Driver: fake.New(o), started: make(chan string, 64)}
	h.serve()
	return h
}

// newBus is a host without a worker.
func newBus(t *testing.T, edits ...func(*config.VM)) *host {
	t.Helper()
	h := &host{t: t, bus: bustest.Start(t), cfg: testConfig(), changed: make(chan struct{}), before: children("fake-vm")}
	h.conn = h.bus.Conn()
	h.cgroups = "/" + filepath.Base(filepath.Dir(h.bus.RunDir)) // unique, as the run directory is
	t.Cleanup(h.sweep)
	for _, e := range edits {
		e(&h.cfg)
	}
	sub, err := bus.OnEvent(h.conn, "", func(ev *busv1.Event) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.events = append(h.events, ev)
		close(h.changed)
		h.changed = make(chan struct{})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	return h
}

func testConfig() config.VM {
	cfg := config.Default().VM
	cfg.Hypervisor, cfg.Accelerator = fake.Name, "tcg"
	cfg.BootTimeout.Duration = patience
	return cfg
}

// sweep removes what a failed test left, and the cgroup that no container made.
func (h *host) sweep() {
	for _, pid := range h.vms() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*" + h.cgroups, "/sys/fs/cgroup" + h.cgroups} {
		dirs, _ := filepath.Glob(pattern + "/*/")
		tops, _ := filepath.Glob(pattern)
		for _, dir := range append(dirs, tops...) {
			_ = syscall.Rmdir(dir)
		}
	}
}

// vms lists the processes of this test's fake VMs.
func (h *host) vms() []int {
	return slices.DeleteFunc(children("fake-vm"), func(pid int) bool { return slices.Contains(h.before, pid) })
}

// serve runs a worker in this process until stop or the end of the test.
func (h *host) serve() {
	h.t.Helper()
	conn := h.bus.Dial("vm-worker", bus.Persistent())
	ctx, cancel := context.WithCancel(context.Background())
	serving, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- vmworker.Run(ctx, vmworker.Deps{
			Conn: conn, RunDir: h.bus.RunDir, Config: h.cfg, Driver: h.driver, Log: bustest.Log(h.t),
			Version: "0.0.1", Serving: func() { _ = conn.NATS().Flush(); close(serving) },
		})
	}()
	select {
	case <-serving:
	case err := <-ended:
		cancel()
		h.t.Fatalf("the worker does not serve: %v", err)
	case <-time.After(patience):
		cancel()
		h.t.Fatal("the worker does not serve")
	}
	h.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				h.t.Errorf("the worker ended with %v", err)
			}
		case <-time.After(2 * patience):
			h.t.Error("the worker does not stop")
		}
	})
	h.t.Cleanup(h.stop)
}

// observed is a driver that tells of the VMs it has started.
type observed struct {
	hypervisor.Driver
	started chan string
}

func (o *observed) Start(ctx context.Context, s hypervisor.Spec) (hypervisor.VM, error) {
	vm, err := o.Driver.Start(ctx, s)
	if err == nil {
		o.started <- s.ID
	}
	return vm, err
}

// awaitVM waits until a VM has been started.
func (h *host) awaitVM() {
	h.t.Helper()
	select {
	case <-h.driver.started:
	case <-time.After(patience):
		h.t.Fatal("no VM is started")
	}
}

// restart ends the worker and starts another on what it left.
func (h *host) restart() {
	h.t.Helper()
	h.stop()
	h.serve()
}

// call asks the vm service, with a new operation id unless ctx has one.
func call[Resp any, P interface {
	*Resp
	proto.Message
}](ctx context.Context, h *host, method string, req proto.Message) (P, error) {
	if bus.OperationFrom(ctx) == "" {
		ctx = bus.WithOperation(ctx, bus.NewOperationID())
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return bus.Call[Resp, P](ctx, h.conn, h.conn.Subject("vm", method), req)
}

func ref(id string) *vmv1.ContainerRef { return &vmv1.ContainerRef{Root: root, Id: id} }

// bundle is a configuration that the fake guest runs args of.
func (h *host) bundle(id string, args ...string) *specs.Spec {
	return &specs.Spec{
		Version:  specs.Version,
		Process:  &specs.Process{Args: args, Cwd: "/", Env: []string{"FAKE_EXIT=42"}},
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: id,
		Linux:    &specs.Linux{CgroupsPath: h.cgroups + "/" + id},
	}
}

// request is what a frontend asks for, after it has handed the mounts over.
func (h *host) request(ctx context.Context, id string, r *relay, spec *specs.Spec) *vmv1.CreateRequest {
	h.t.Helper()
	dir := h.t.TempDir()
	text, err := json.Marshal(spec)
	if err != nil {
		h.t.Fatal(err)
	}
	mount, err := os.Open(dir)
	if err != nil {
		h.t.Fatal(err)
	}
	defer mount.Close()
	token := bus.OperationFrom(ctx)
	if err := handover.Send(ctx, filepath.Join(h.bus.RunDir, "handover.sock"), token, []*os.File{mount}); err != nil {
		h.t.Fatal(err)
	}
	return &vmv1.CreateRequest{
		Ref: ref(id), Bundle: dir, Rootfs: filepath.Join(dir, "rootfs"), Config: string(text),
		Handover: token, Mounts: []*vmv1.HandedMount{{Index: 0, Destination: "/", IsDir: true}}, Relay: r.identity(),
	}
}

// create makes a container that runs args, and its relay.
func (h *host) create(id string, args ...string) *relay {
	h.t.Helper()
	r := startRelay(h.t, h.bus.RunDir)
	ctx := operation(h.t)
	reply, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, id, r, h.bundle(id, args...)))
	if err != nil {
		h.t.Fatalf("create %s: %v", id, err)
	}
	if s := reply.Container.Status; s != vmv1.ContainerStatus_CONTAINER_STATUS_CREATED {
		h.t.Fatalf("created container %s is %s", id, s)
	}
	r.commit()
	return r
}

// run makes a container and starts it.
func (h *host) run(id string, args ...string) *relay {
	h.t.Helper()
	r := h.create(id, args...)
	h.start(id)
	return r
}

func (h *host) start(id string) {
	h.t.Helper()
	if _, err := call[vmv1.StartReply](h.t.Context(), h, "start", &vmv1.StartRequest{Ref: ref(id)}); err != nil {
		h.t.Fatalf("start %s: %v", id, err)
	}
}

// exec runs args beside a container's init.
func (h *host) exec(id, exec string, args ...string) *relay {
	h.t.Helper()
	r := startRelay(h.t, h.bus.RunDir)
	if _, err := call[vmv1.ExecReply](h.t.Context(), h, "exec", execRequest(id, exec, r, args...)); err != nil {
		h.t.Fatalf("exec %s in %s: %v", exec, id, err)
	}
	r.commit()
	return r
}

func execRequest(id, exec string, r *relay, args ...string) *vmv1.ExecRequest {
	process, _ := json.Marshal(&specs.Process{Args: args, Cwd: "/", Env: []string{"FAKE_EXIT=42"}})
	return &vmv1.ExecRequest{Ref: ref(id), ExecId: exec, Process: string(process), Relay: r.identity()}
}

func (h *host) state(id string) *vmv1.Container {
	h.t.Helper()
	reply, err := call[vmv1.StateReply](h.t.Context(), h, "state", &vmv1.StateRequest{Ref: ref(id)})
	if err != nil {
		h.t.Fatalf("state of %s: %v", id, err)
	}
	return reply.Container
}

func (h *host) expectStatus(id string, want vmv1.ContainerStatus) {
	h.t.Helper()
	if got := h.state(id).Status; got != want {
		h.t.Errorf("%s is %s, want %s", id, got, want)
	}
}

func (h *host) kill(id string, signal int32) {
	h.t.Helper()
	if _, err := call[vmv1.KillReply](h.t.Context(), h, "kill", &vmv1.KillRequest{Ref: ref(id), Signal: signal}); err != nil {
		h.t.Fatalf("kill %s: %v", id, err)
	}
}

func (h *host) delete(id string, force bool) {
	h.t.Helper()
	if _, err := call[vmv1.DeleteReply](h.t.Context(), h, "delete", &vmv1.DeleteRequest{Ref: ref(id), Force: force}); err != nil {
		h.t.Fatalf("delete %s: %v", id, err)
	}
}

func (h *host) list() *vmv1.ListReply {
	h.t.Helper()
	reply, err := call[vmv1.ListReply](h.t.Context(), h, "list", &vmv1.ListRequest{})
	if err != nil {
		h.t.Fatalf("list: %v", err)
	}
	return reply
}

// await waits for an event of the container or sandbox and returns it.
func (h *host) await(id, event string) *busv1.Event {
	h.t.Helper()
	return h.awaitThat(event+" of "+id, func(ev *busv1.Event) bool { return ev.Event == event && (id == "" || ev.Id == id) })
}

func (h *host) awaitThat(what string, is func(*busv1.Event) bool) *busv1.Event {
	h.t.Helper()
	limit := time.After(patience)
	for seen := 0; ; {
		h.mu.Lock()
		events, changed := h.events, h.changed
		h.mu.Unlock()
		for ; seen < len(events); seen++ {
			if is(events[seen]) {
				return events[seen]
			}
		}
		select {
		case <-changed:
		case <-limit:
			h.t.Fatalf("no event %s; there were %v", what, h.told())
		}
	}
}

// told is the names of all events so far.
func (h *host) told() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var names []string
	for _, ev := range h.events {
		names = append(names, ev.Kind+"."+ev.Event)
	}
	return names
}

// expectNothing checks that no container, VM or trace of one is left.
func (h *host) expectNothing() {
	h.t.Helper()
	if l := h.list(); len(l.Containers)+len(l.Sandboxes) != 0 {
		h.t.Errorf("the worker still lists %v", l)
	}
	h.expectNoTrace()
}

// expectNoTrace is expectNothing without a worker.
func (h *host) expectNoTrace() {
	h.t.Helper()
	for _, dir := range []string{"vm", "relay"} {
		entries, err := os.ReadDir(filepath.Join(h.bus.RunDir, dir))
		if err != nil && !os.IsNotExist(err) {
			h.t.Error(err)
		}
		for _, e := range entries {
			h.t.Errorf("%s/%s is left behind", dir, e.Name())
		}
	}
	for _, name := range []string{bus.BucketContainers, bus.BucketSandboxes} {
		if keys := h.keys(name); len(keys) != 0 {
			h.t.Errorf("bucket %s still holds %v", name, keys)
		}
	}
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*" + h.cgroups + "/*/cgroup.procs")
	unified, _ := filepath.Glob("/sys/fs/cgroup" + h.cgroups + "/*/cgroup.procs")
	for _, c := range append(cgroups, unified...) {
		h.t.Errorf("cgroup %s is left behind", c)
	}
	if pids := h.vms(); len(pids) != 0 {
		h.t.Errorf("the processes of fake VMs %v are left behind", pids)
	}
}

func (h *host) keys(bucket string) []string {
	h.t.Helper()
	b, err := bus.OpenBucket[*vmv1.Container](h.t.Context(), h.conn, bucket)
	if err != nil {
		h.t.Fatal(err)
	}
	keys, err := b.Keys(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return keys
}

func operation(t *testing.T) context.Context {
	return bus.WithOperation(t.Context(), bus.NewOperationID())
}

// refused checks an error's reason and its text, which engines match on.
func refused(t *testing.T, what string, err error, reason bus.Reason, text string) {
	t.Helper()
	if bus.ReasonOf(err) != reason || err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s gives %q (%s), want %q (%s)", what, err, bus.ReasonOf(err), text, reason)
	}
}
