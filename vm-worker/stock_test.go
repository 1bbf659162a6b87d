// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/bus/config"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
)

// templating is a fake hypervisor with templates that hold nothing.
type templating struct {
	*observed

	mu     sync.Mutex     // guards all below
	parts  string         // what templates are made of
	file   string         // and this file's contents; empty: none
	broken error          // why none can be made
	deaf   bool           // VMs cannot be started from one
	spoil  func(*hanging) // does harm to a VM that was started from one; nil: none comes to any
	broke  error          // why no VM can be started at all
	made   int
	making int // templates that are being made now
	most   int // the most that were at one time
}

type fakeTemplate struct{ key string }

func (f *fakeTemplate) Key() string  { return f.key }
func (f *fakeTemplate) Bytes() int64 { return 1 << 20 }
func (f *fakeTemplate) Process() int { return 0 }
func (f *fakeTemplate) Worn() error  { return nil }
func (f *fakeTemplate) Close() error { return nil }

func (d *templating) TemplateKey(_ context.Context, s hypervisor.Spec) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == "" {
		return fmt.Sprint(d.parts, s.KernelArgs), nil
	}
	contents, err := os.ReadFile(d.file)
	return fmt.Sprint(d.parts, s.KernelArgs, string(contents)), err
}

func (d *templating) TemplateFiles(context.Context, hypervisor.Spec) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == "" {
		return nil, nil
	}
	return []string{d.file, d.file + ".absent"}, nil
}

func (d *templating) MakeTemplate(ctx context.Context, s hypervisor.Spec, ready func(context.Context, hypervisor.VM) error) (hypervisor.Template, error) {
	key, _ := d.TemplateKey(ctx, s)
	d.mu.Lock()
	broken := d.broken
	d.made++
	d.making++
	d.most = max(d.most, d.making)
	d.mu.Unlock()
	defer d.set(func() { d.making-- })
	if broken != nil {
		return nil, broken
	}
	vm, err := d.Driver.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	err = ready(ctx, vm)
	return &fakeTemplate{key}, errors.Join(err, vm.Kill(context.WithoutCancel(ctx)))
}

func (d *templating) Start(ctx context.Context, s hypervisor.Spec) (hypervisor.VM, error) {
	d.mu.Lock()
	deaf, spoil, broke := d.deaf, d.spoil, d.broke
	d.mu.Unlock()
	if s.From != nil && deaf {
		return nil, errors.New("broken for the test")
	}
	if broke != nil {
		return nil, broke
	}
	vm, err := d.observed.Start(ctx, s)
	if err == nil && s.From != nil && spoil != nil {
		spoil(vm.(*hanging))
	}
	return vm, err
}

func (d *templating) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// newStock is a host whose hypervisor has templates, with a pool of this many VMs.
func newStock(t *testing.T, pool int, edits ...func(*templating)) *host {
	t.Helper()
	h := newBus(t, func(c *config.VM) { c.Templates, c.Pool = true, pool })
	h.driver = &observed{Driver: fake.New(fake.Options{}), started: make(chan string, 1024)}
	h.stock = &templating{observed: h.driver, parts: "first"}
	for _, e := range edits {
		e(h.stock)
	}
	h.serve()
	return h
}

func (h *host) pool() *vmv1.PoolReply {
	h.t.Helper()
	reply, err := call[vmv1.PoolReply](h.t.Context(), h, "pool", &vmv1.PoolRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	// The oldest first, as they are taken and given up.
	slices.SortFunc(reply.Sandboxes, func(a, b *vmv1.Sandbox) int { return a.Created.AsTime().Compare(b.Created.AsTime()) })
	return reply
}

// awaitPool waits until the pool pleases.
func (h *host) awaitPool(what string, pleases func(*vmv1.PoolReply) bool) *vmv1.PoolReply {
	h.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		pool := h.pool()
		if pleases(pool) {
			return pool
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("the pool has not %s: %v", what, pool)
		}
	}
}

func full(p *vmv1.PoolReply) bool { return p.Ready == p.Target }

// sandbox is the record of the only container's.
func (h *host) sandbox() *vmv1.Sandbox {
	h.t.Helper()
	l := h.list()
	if len(l.Sandboxes) != 1 {
		h.t.Fatalf("the worker lists %v", l)
	}
	return l.Sandboxes[0]
}

func TestACreateTakesAVMOutOfThePool(t *testing.T) {
	h := newStock(t, 2)
	before := h.awaitPool("filled", full)
	h.run("c1", "sleep")
	s := h.sandbox()
	if s.Origin != "pool" || s.State != "running" || s.Id != before.Sandboxes[0].Id {
		t.Errorf("with %v in the pool the container runs in %v", before.Sandboxes, s)
	}
	after := h.awaitPool("filled again", full)
	if after.Taken != 1 || after.Missed != 0 {
		t.Errorf("the pool says %v", after)
	}
	for _, spare := range after.Sandboxes {
		if spare.Id == s.Id || spare.State != "pooled" {
			t.Errorf("beside the container's VM %s there is %v in the pool", s.Id, spare)
		}
	}
	h.delete("c1", true)
	h.stop()
	h.expectNoTrace()
}

func TestWithoutAPoolAVMComesFromATemplate(t *testing.T) {
	h := newStock(t, 0)
	h.run("c1", "sleep")
	if s := h.sandbox(); s.Origin != "boot" || !strings.Contains(s.OriginReason, "not made yet") {
		t.Errorf("before there is a template a VM's origin is %q, %q", s.Origin, s.OriginReason)
	}
	h.delete("c1", true)
	h.awaitPool("its template", func(p *vmv1.PoolReply) bool { return len(p.Templates) == 1 && p.Templates[0].State == "ready" })
	h.run("c2", "sleep")
	if s := h.sandbox(); s.Origin != "template" || s.Template == "" || s.OriginReason != "" {
		t.Errorf("with a template a VM's origin is %q, %q", s.Origin, s.OriginReason)
	}
	h.delete("c2", true)
	h.stop()
	h.expectNoTrace()
}

func TestAWorkerRemovesThePoolThatAnotherLeft(t *testing.T) {
	h := newStock(t, 1)
	pool := h.awaitPool("filled", full)
	// A worker that is killed leaves the directory as it is now; one that ends takes it away.
	dir := filepath.Join(h.bus.RunDir, "vm", pool.Sandboxes[0].Id)
	record, err := os.ReadFile(filepath.Join(dir, "sandbox.json"))
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "sandbox.json"), record, 0o600)); err != nil {
		t.Fatal(err)
	}
	h.cfg.Pool, h.cfg.Templates = 0, false
	h.serve()
	h.expectNothing()
}

func TestAVMOfThePoolThatEndsIsReplaced(t *testing.T) {
	h := newStock(t, 1)
	dead := h.awaitPool("filled", full).Sandboxes[0]
	kill9(t, int(dead.Pid))
	h.awaitPool("replaced it", func(p *vmv1.PoolReply) bool { return full(p) && p.Sandboxes[0].Id != dead.Id })
	h.stop()
	h.expectNoTrace()
}

func TestWhatWasMadeOfOtherPartsIsNotUsed(t *testing.T) {
	h := newStock(t, 1)
	old := h.awaitPool("filled", full).Sandboxes[0]
	h.stock.set(func() { h.stock.parts = "second" })
	h.run("c1", "sleep")
	if s := h.sandbox(); s.Id == old.Id || s.Origin != "boot" || !strings.Contains(s.OriginReason, "have changed") {
		t.Errorf("after a change of parts the container runs in %v", s)
	}
	h.delete("c1", true)
	h.awaitPool("been made of the new parts", func(p *vmv1.PoolReply) bool {
		return full(p) && p.Sandboxes[0].Id != old.Id && strings.HasPrefix(p.Sandboxes[0].Template, "second")
	})
	h.stop()
	h.expectNoTrace()
}

// TestWhatAChangedFileWasPartOfIsReplacedUnmet: without a create that would meet it.
func TestWhatAChangedFileWasPartOfIsReplacedUnmet(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kernel")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "one")
	h := newStock(t, 1, func(d *templating) { d.file = file })
	made := func(of string) func(*vmv1.PoolReply) bool {
		return func(p *vmv1.PoolReply) bool {
			return full(p) && strings.HasSuffix(p.Sandboxes[0].Template, of) && len(p.Templates) == 1 && strings.HasSuffix(p.Templates[0].Key, of)
		}
	}
	old := h.awaitPool("been made", made("one")).Sandboxes[0]
	write(file, "two") // in place
	h.awaitPool("followed a file that was written", made("two"))
	write(file+".new", "three") // as packages do
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	h.awaitPool("followed a file that was replaced", made("three"))
	eventually(t, "the first VM has ended", func() bool { return !slices.Contains(h.vms(), int(old.Pid)) })
	h.stock.set(func() { h.stock.broken = errors.New("no kernel") })
	write(file, "four")
	h.awaitPool("failed", func(p *vmv1.PoolReply) bool { return len(p.Templates) == 1 && p.Templates[0].State == "failed" })
	h.stock.set(func() { h.stock.broken = nil })
	write(file, "five") // what failed is not tried again for a while, unless it is another
	h.awaitPool("followed a file that makes one again", made("five"))
	h.stop()
	h.expectNoTrace()
}

func TestATemplateThatFailsIsToldAndVMsBoot(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*templating)
		says string
	}{
		"making it":        {func(d *templating) { d.broken = errors.New("no template today") }, "no template today"},
		"starting from it": {func(d *templating) { d.deaf = true }, "broken for the test"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newStock(t, 1, c.edit)
			if ev := h.await("plain", "failed"); ev.Kind != "template" || !strings.Contains(ev.Attributes["error"], c.says) {
				t.Errorf("the event is %v", ev)
			}
			h.run("c1", "sleep")
			s := h.sandbox()
			if s.Origin != "boot" || !strings.Contains(s.OriginReason, c.says) {
				t.Errorf("the VM's origin is %q, %q", s.Origin, s.OriginReason)
			}
			ev := h.await(s.Id, "starting")
			if ev.Attributes["origin"] != "boot" || ev.Attributes["origin_reason"] != s.OriginReason {
				t.Errorf("the event says %v", ev.Attributes)
			}
			h.delete("c1", true)
			h.stop()
			h.expectNoTrace()
		})
	}
}

// TestAVMInUseGetsTheMemoryOfThePool: what nobody uses is given up when a container needs it, and a VM that
// another container takes meanwhile is that one's.
func TestAGuestThatCannotRehearseBecomesATemplateWithout(t *testing.T) {
	h := newStock(t, 1, func(d *templating) {
		d.observed.Driver = fake.New(fake.Options{RehearsalError: func() error { return errors.New("it has stage fright") }})
	})
	p := h.awaitPool("filled", full)
	h.stock.set(func() {
		if h.stock.made != 2 || p.Templates[0].State != "ready" {
			t.Errorf("made %d times, the template is %v; want it made anew once", h.stock.made, p.Templates[0])
		}
	})
	h.stop()
	h.expectNoTrace()
}

func TestAVMInUseGetsTheMemoryOfThePool(t *testing.T) {
	h := newStock(t, 2)
	h.awaitPool("filled", full)
	h.stop()
	h.cfg.MemoryBudgetMiB = 4 * 128
	h.serve()
	h.awaitPool("filled", full)
	h.createAs("needy", sized(h.bundle("needy", "sleep"), 1024*mib, 100_000))
	first := h.awaitPool("filled again", full).Sandboxes
	driver := h.driver.Driver.(*fake.Driver)
	needy := h.state("needy").Sandbox
	has := func(what string, bytes uint64) {
		t.Helper()
		h.toldMemory(driver, needy, what, func(m *agentv1.MemoryRequest) bool { return m.Memory.GetHas() == bytes && !m.Refused })
	}
	h.want(driver, needy, 256*mib)
	has("beside the pool", 256*mib)

	kill := h.driver.slowKill(first[0].Id)
	h.want(driver, needy, 384*mib)
	select {
	case <-kill.begun:
	case <-time.After(patience):
		t.Fatal("the pool is not given up")
	}
	h.run("other", "sleep")
	if got := h.state("other").Sandbox; got != first[1].Id {
		t.Errorf("the other container runs in %s, not in %s of the pool", got, first[1].Id)
	}
	close(kill.released)
	has("when the pool was given up", 384*mib)
	h.restart() // which waits until the pool was given up
	h.expectStatus("other", vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING)
	h.delete("needy", true)
	h.delete("other", true)
	h.stop()
	h.expectNoTrace()
}
