// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/config"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	vmworker "bulkhead/vm-worker"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"

	"golang.org/x/sys/unix"
)

// patience bounds every wait of these tests; none is expected to come near it.
const patience = 20 * time.Second

// host is a real bus, real relays and a vm worker with a fake hypervisor.
type host struct {
	t      *testing.T
	bus    *bustest.Bus
	conn   *bus.Conn
	driver *observed
	stock  *templating // nil: the hypervisor has no templates
	cfg    config.VM

	pressure string        // where the kernel tells of waits for memory
	retry    time.Duration // before another template is made for one that is no good; 0: as in life
	cgroups  string        // where the containers have their host cgroups
	before   []int         // fake VMs that are not this test's
	stop     func()        // ends the worker as SIGTERM does and waits for it
	mu       sync.Mutex
	events   []*busv1.Event // guarded by mu
	changed  chan struct{}  // guarded by mu: closed at the next event
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
	h.pressure = filepath.Join(t.TempDir(), "none")             // what else the host does is nothing to these tests
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
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has gone by itself
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		// Its cgroup can be removed when it is gone.
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		_ = unix.Close(fd)
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
	var driver hypervisor.Driver = h.driver
	if h.stock != nil {
		driver = h.stock
	}
	ctx, cancel := context.WithCancel(context.Background())
	serving, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- vmworker.Run(ctx, vmworker.Deps{
			Conn: conn, RunDir: h.bus.RunDir, Config: h.cfg, Driver: driver, Log: bustest.Log(h.t),
			Version: "0.0.1", Serving: func() { _ = conn.NATS().Flush(); close(serving) }, PressureFile: h.pressure, TemplateRetry: h.retry,
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

	mu  sync.Mutex
	vms []*hanging // guarded by mu
}

func (o *observed) Start(ctx context.Context, s hypervisor.Spec) (hypervisor.VM, error) {
	vm, err := o.Driver.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	v := &hanging{VM: vm, hung: make(chan struct{}), ended: make(chan struct{})}
	o.mu.Lock()
	o.vms = append(o.vms, v)
	o.mu.Unlock()
	o.started <- s.ID
	return v, nil
}

// hangAll makes the agents of all VMs hang.
func (o *observed) hangAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, v := range o.vms {
		v.hang()
	}
}

// slowKill holds up the killing of a VM.
func (o *observed) slowKill(id string) *slowKill {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := &slowKill{begun: make(chan struct{}), released: make(chan struct{})}
	for _, v := range o.vms {
		if v.ID() == id {
			v.slow.Store(k)
		}
	}
	return k
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

// refused checks an error's reason and its text, which engines match on.
func refused(t *testing.T, what string, err error, reason bus.Reason, text string) {
	t.Helper()
	if bus.ReasonOf(err) != reason || err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s gives %q (%s), want %q (%s)", what, err, bus.ReasonOf(err), text, reason)
	}
}
