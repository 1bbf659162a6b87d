// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus/link"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// kind tells the guests apart that templates are made for: what is decided on the
// kernel's command line cannot be changed in a clone.
type kind string

const (
	plainKind   kind = "plain"
	selinuxKind kind = "selinux"
)

func kindOf(selinux bool) kind {
	if selinux {
		return selinuxKind
	}
	return plainKind
}

// templateRetry is the pause after a template could not be made.
const templateRetry = 5 * time.Minute

// longestRetry is the longest pause after a template from which VMs can be started, and not as well as they could: what
// this host's QEMU lacks is not there the next time, and while another is made, VMs boot.
const longestRetry = 24 * time.Hour

// templates holds what VMs continue from, one template for each kind of guest. They are
// memory of this process's: a worker that starts has none, and one that is killed leaves none.
type templates struct {
	w      *Worker
	driver hypervisor.Templater // nil: switched off, or the driver has none
	why    string               // why there are none, in a sentence

	mu     sync.Mutex // guards all below
	byKind map[kind]*madeTemplate
	wanted map[kind]bool          // somebody would have used one
	pauses map[kind]time.Duration // of the last template, if that was worn from the start
}

// madeTemplate is a template on its way, ready, or failed.
type madeTemplate struct {
	kind     kind
	template hypervisor.Template // nil: on its way, or failed
	err      error               // why it failed
	key      string              // of what it was to be made of, when that is known
	failed   time.Time
	made     time.Time
	took     time.Duration
	pause    time.Duration // until another is made, if it is worn
	clones   uint64
}

func (w *Worker) newTemplates() *templates {
	t := &templates{w: w, byKind: map[kind]*madeTemplate{}, wanted: map[kind]bool{}, pauses: map[kind]time.Duration{}}
	driver, ok := w.driver.(hypervisor.Templater)
	switch {
	case !w.cfg.Templates:
		t.why = "[vm] templates = false"
	case !ok:
		t.why = fmt.Sprintf("the hypervisor %s has no templates", w.driver.Name())
	default:
		t.driver = driver
	}
	return t
}

// base is the machine that templates of a kind are made of, and that every VM
// from one of them begins as: the rest is plugged in, or the guest is told.
func (w *Worker) base(k kind) (hypervisor.Spec, error) {
	accel, reason, err := w.accelerator()
	if err != nil {
		return hypervisor.Spec{}, err
	}
	size := sizeOf([]demand{{}}, w.cfg)
	return hypervisor.Spec{
		Kernel: w.cfg.Kernel, Image: w.cfg.Image,
		VCPUs: size.VCPUs, MemoryBytes: w.baseMemory(), Max: roomFor(size),
		Accelerator: accel, AcceleratorReason: reason,
		KernelArgs: kernelArgs(k == selinuxKind),
	}, nil
}

// find returns the template from which a VM for this plan can continue, or why it
// has to boot.
func (t *templates) find(ctx context.Context, p *plan) (hypervisor.Template, error) {
	if t.driver == nil {
		return nil, errors.New(t.why)
	}
	k := kindOf(p.labelled())
	base, err := t.w.base(k)
	if err != nil {
		return nil, err
	}
	switch {
	case p.size.VCPUs > base.Max.VCPUs:
		return nil, fmt.Errorf("it needs %d processors, and a VM from a template can have %d", p.size.VCPUs, base.Max.VCPUs)
	case p.size.MemoryBytes > base.Max.MemoryBytes:
		return nil, fmt.Errorf("it needs %d MiB of memory, and a VM from a template can have %d", p.size.MemoryBytes>>20, base.Max.MemoryBytes>>20)
	}
	return t.current(ctx, k, base)
}

// current returns the template of a kind if it is ready and nothing of what it was
// made of has changed. Otherwise one is made in the background.
func (t *templates) current(ctx context.Context, k kind, base hypervisor.Spec) (hypervisor.Template, error) {
	key, err := t.driver.TemplateKey(ctx, base)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted[k] = true
	m := t.byKind[k]
	switch {
	case m == nil:
		t.w.stock.wake()
		return nil, errors.New("the first template is not made yet")
	case m.err != nil:
		if time.Since(m.failed) > templateRetry || m.key != key {
			delete(t.byKind, k)
			t.w.stock.wake()
		}
		return nil, fmt.Errorf("its template could not be made: %w", m.err)
	case m.template == nil:
		return nil, errors.New("its template is being made")
	case m.template.Key() != key:
		t.dropLocked(m)
		t.w.stock.wake()
		return nil, errors.New("the kernel, the image or QEMU have changed since its template was made; another is being made")
	}
	return m.template, nil
}

// dropLocked gives a template up. What runs from it, runs on. The caller holds t.mu.
func (t *templates) dropLocked(m *madeTemplate) {
	if m.template != nil {
		if err := m.template.Close(); err != nil {
			t.w.log.Warn("template not given up", "kind", m.kind, "error", err)
		}
		t.removeDir(m.kind)
	}
	if t.byKind[m.kind] == m {
		delete(t.byKind, m.kind)
	}
}

// distrust gives up a template from which a VM could not be started; the next is made after a while.
func (t *templates) distrust(ctx context.Context, bad hypervisor.Template, err error) {
	if ctx.Err() != nil {
		return // it is the start that was given up
	}
	gone := errors.Is(err, hypervisor.ErrTemplateGone)
	k, found := kind(""), false
	t.mu.Lock()
	for _, m := range t.byKind {
		if m.template != bad {
			continue
		}
		k, found = m.kind, true
		t.dropLocked(m)
		if !gone {
			t.byKind[k] = &madeTemplate{kind: k, err: err, key: bad.Key(), failed: time.Now()}
		}
	}
	t.mu.Unlock()
	switch {
	case !found:
	case gone:
		t.w.stock.wake()
	default:
		t.tellFailed(ctx, k, err)
	}
}

func (t *templates) tellFailed(ctx context.Context, k kind, err error) {
	t.w.log.Error("no template; VMs boot until one is made", "kind", k, "retry_in", templateRetry, "error", err)
	t.w.event(ctx, "template", string(k), "failed", map[string]string{"error": err.Error()})
}

// cloned counts, and gives up a template that is worse than it could be, though not more often than one that fails, and
// ever more rarely where the next was no better.
func (t *templates) cloned(from hypervisor.Template) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.byKind {
		if m.template != from {
			continue
		}
		m.clones++
		if worn := from.Worn(); worn != nil && time.Since(m.made) > m.pause {
			t.w.log.Warn("another template is made", "kind", m.kind, "error", worn)
			t.dropLocked(m)
			t.w.stock.wake()
		}
	}
}

// dropStale gives up what was made of parts that are others now, also what failed with them.
func (t *templates) dropStale(ctx context.Context) {
	t.mu.Lock()
	kinds := slices.Collect(maps.Keys(t.byKind))
	t.mu.Unlock()
	for _, k := range kinds {
		base, err := t.w.base(k)
		if err != nil {
			continue
		}
		key, err := t.driver.TemplateKey(ctx, base)
		if err != nil {
			t.w.log.Debug("parts of a template not read", "kind", k, "error", err)
			continue // one is being replaced, and that is told as well; without it no VM starts
		}
		t.mu.Lock()
		m := t.byKind[k]
		stale := m != nil && (m.template != nil && m.template.Key() != key || m.err != nil && m.key != key)
		if stale {
			t.dropLocked(m)
		}
		t.mu.Unlock()
		if stale {
			t.w.log.Info("what a template was made of has changed; another is made", "kind", k)
			t.w.stock.wake()
		}
	}
}

// want has a template made before anybody asks for it.
func (t *templates) want(k kind) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted[k] = true
}

// key is that of the template of a kind; empty when there is none.
func (t *templates) key(k kind) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.byKind[k]; m != nil && m.template != nil {
		return m.template.Key()
	}
	return ""
}

// missing are the kinds that were wanted, or are wanted anyway, and have no template.
func (t *templates) missing() []kind {
	t.mu.Lock()
	defer t.mu.Unlock()
	var kinds []kind
	for k := range t.wanted {
		if t.byKind[k] == nil {
			kinds = append(kinds, k)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// make makes the template of a kind.
func (t *templates) make(ctx context.Context, k kind) {
	m := &madeTemplate{kind: k}
	t.mu.Lock()
	t.byKind[k] = m
	t.mu.Unlock()
	began := time.Now()
	key := t.w.stock.watchParts(ctx, k) // before: what changes while it is made is told
	made, err := t.boot(ctx, k)
	t.mu.Lock()
	if err != nil {
		m.err, m.failed, m.key = err, time.Now(), key
	} else {
		m.template, m.made, m.took = made, time.Now(), time.Since(began)
		m.pause = t.pauseLocked(k, made.Worn())
	}
	t.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil { // else the worker ends
			t.tellFailed(ctx, k, err)
		}
		return
	}
	t.w.event(ctx, "template", string(k), "made", map[string]string{"key": made.Key(), "mib": itoa(uint32(made.Bytes() >> 20))})
}

// pauseLocked is the pause of a template that was made just now. The caller holds t.mu.
func (t *templates) pauseLocked(k kind, worn error) time.Duration {
	if worn == nil {
		delete(t.pauses, k)
		return templateRetry
	}
	t.pauses[k] = min(max(2*t.pauses[k], templateRetry), longestRetry)
	return t.pauses[k]
}

// dir is where a guest becomes a template, and where the process is recorded that forks VMs from then on.
func (t *templates) dir(k kind) string { return t.w.store.sandboxDir("template-" + string(k)) }

// boot boots the guest of a template in a directory that the next worker removes,
// with what runs in it, should this one not. It stays as long as a process of it does.
func (t *templates) boot(ctx context.Context, k kind) (hypervisor.Template, error) {
	spec, err := t.w.base(k)
	if err != nil {
		return nil, err
	}
	if spec.CgroupProcs, err = t.w.stock.cgroups.procs(forking); err != nil {
		return nil, err
	}
	spec.ID = "template-" + string(k)
	spec.Dir = t.dir(k)
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of a template: %w", err)
	}
	made, err := t.driver.MakeTemplate(ctx, spec, t.w.makeReady)
	if errors.Is(err, errRehearsal) && ctx.Err() == nil {
		// Containers start slower from it, but sooner than in a VM that boots.
		t.w.log.Error("the guest of a template could not rehearse, and is made anew without", "kind", k, "error", err)
		made, err = t.driver.MakeTemplate(ctx, spec, awaitListening)
	}
	if err != nil || made.Process() == 0 {
		t.removeDir(k)
	}
	return made, err
}

// removeDir removes the directory of a template. What is left there is the next worker's to remove; the template is none of it.
func (t *templates) removeDir(k kind) {
	if err := os.RemoveAll(t.dir(k)); err != nil {
		t.w.log.Warn("directory of a template not removed", "kind", k, "error", err)
	}
}

// awaitListening waits until the guest answers on both channels, and leaves it
// without having said whose it is.
func awaitListening(ctx context.Context, vm hypervisor.VM) error {
	for _, dial := range []func(context.Context) (net.Conn, error){vm.DialIO, vm.DialCtl} {
		if err := inSession(ctx, dial, func(*link.Session) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// inSession opens a session with the guest for as long as fn needs it.
func inSession(ctx context.Context, dial func(context.Context) (net.Conn, error), fn func(*link.Session) error) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	session, err := link.Dial(ctx, conn)
	if err != nil {
		return err
	}
	err = fn(session)
	return errors.Join(err, session.Close())
}

// close gives all templates up.
func (t *templates) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.byKind {
		t.dropLocked(m)
	}
}

// describe tells a person what there is.
func (t *templates) describe() []*vmv1.Template {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*vmv1.Template
	for _, m := range t.byKind {
		d := &vmv1.Template{Kind: string(m.kind), State: "making", Clones: m.clones}
		switch {
		case m.err != nil:
			d.State, d.Error = "failed", m.err.Error()
		case m.template != nil:
			d.State, d.Key, d.Bytes = "ready", m.template.Key(), uint64(m.template.Bytes())
			d.Pid = int32(m.template.Process())
			if worn := m.template.Worn(); worn != nil {
				d.Worn = worn.Error()
			}
			d.Made, d.Took = timestamppb.New(m.made), durationpb.New(m.took)
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *vmv1.Template) int { return cmp.Compare(a.Kind, b.Kind) })
	return all
}
