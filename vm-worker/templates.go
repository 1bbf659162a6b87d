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
	"path/filepath"
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

// templates holds what VMs continue from, one template for each kind of guest. They are
// memory of this process's: a worker that starts has none, and one that is killed leaves none.
type templates struct {
	w      *Worker
	driver hypervisor.Templater // nil: switched off, or the driver has none
	why    string               // why there are none, in a sentence
	retry  time.Duration        // the shortest pause before another is made for one that is no good

	mu     sync.Mutex // guards all below
	byKind map[kind]*madeTemplate
	wanted map[kind]bool          // somebody would have used one
	pauses map[kind]time.Duration // after the last template, if that failed or lacked something from the start
}

// madeTemplate is a template on its way, ready, or failed.
type madeTemplate struct {
	kind        kind
	dir         string
	template    hypervisor.Template // nil: on its way, or failed
	unrehearsed error               // why its guest did not rehearse; nil: it did
	err         error               // why it failed
	key         string              // of what it was to be made of, when that is known
	made        time.Time
	took        time.Duration
	again       time.Time // not before this another is made, if there is a reason
	clones      uint64
}

func (w *Worker) newTemplates() *templates {
	t := &templates{w: w, byKind: map[kind]*madeTemplate{}, wanted: map[kind]bool{}, pauses: map[kind]time.Duration{}, retry: cmp.Or(w.templateRetry, templateRetry)}
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
		if m.key != key {
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
		t.removeDir(m)
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
	var failed *madeTemplate
	found := false
	t.mu.Lock()
	for _, m := range t.byKind {
		if m.template != bad {
			continue
		}
		found = true
		t.dropLocked(m)
		if !errors.Is(err, hypervisor.ErrTemplateGone) {
			failed = t.failedLocked(m.kind, err, bad.Key())
			t.byKind[m.kind] = failed
		}
	}
	t.mu.Unlock()
	if failed != nil {
		t.tellFailed(ctx, failed)
	}
	if found {
		t.w.stock.wake() // to make another, at once or later
	}
}

func (t *templates) tellFailed(ctx context.Context, m *madeTemplate) {
	pause := time.Until(m.again).Round(time.Second)
	t.w.log.Error("no template; VMs boot until one is made", "kind", m.kind, "retry_in", pause, "error", m.err)
	t.w.event(ctx, "template", string(m.kind), "failed", map[string]string{"error": m.err.Error(), "retry_in": pause.String()})
}

// tellMade tells of a template, and what it lacks.
func (t *templates) tellMade(ctx context.Context, m *madeTemplate) {
	told := map[string]string{"key": m.template.Key(), "mib": itoa(uint32(m.template.Bytes() >> 20))}
	if lacks := m.lacks(); lacks != nil {
		told["worn"], told["retry_in"] = lacks.Error(), time.Until(m.again).Round(time.Second).String()
	}
	t.w.event(ctx, "template", string(m.kind), "made", told)
}

// cloned counts, and has a template that is found to be less than it could be replaced when it is time.
func (t *templates) cloned(from hypervisor.Template) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.byKind {
		if m.template != from {
			continue
		}
		m.clones++
		if m.lacks() != nil && time.Now().After(m.again) {
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

// make makes the template of a kind that has none.
func (t *templates) make(ctx context.Context, k kind) {
	t.mu.Lock()
	t.byKind[k] = &madeTemplate{kind: k}
	t.mu.Unlock()
	m := t.try(ctx, k, "")
	t.mu.Lock()
	if m.err != nil {
		m = t.failedLocked(k, m.err, m.key)
	} else {
		m.again = m.made.Add(t.pauseLocked(k, m.lacks()))
	}
	t.byKind[k] = m
	t.mu.Unlock()
	switch {
	case m.err == nil:
		t.tellMade(ctx, m)
	case ctx.Err() == nil: // else the worker ends
		t.tellFailed(ctx, m)
	}
}

// try makes a template that is nobody's yet, beside the one that has a directory.
func (t *templates) try(ctx context.Context, k kind, beside string) *madeTemplate {
	m := &madeTemplate{kind: k, dir: t.dir(k)}
	if m.dir == beside {
		m.dir += "-2"
	}
	began := time.Now()
	m.key = t.w.stock.watchParts(ctx, k) // before: what changes while it is made is told
	m.template, m.unrehearsed, m.err = t.boot(ctx, m)
	m.made, m.took = time.Now(), time.Since(began)
	return m
}

// dir is where a guest becomes a template, and where the process is recorded that forks VMs from then on.
func (t *templates) dir(k kind) string { return t.w.store.sandboxDir("template-" + string(k)) }

// boot boots the guest of a template in a directory that the next worker removes,
// with what runs in it, should this one not. It stays as long as a process of it does.
func (t *templates) boot(ctx context.Context, m *madeTemplate) (made hypervisor.Template, unrehearsed, err error) {
	spec, err := t.w.base(m.kind)
	if err != nil {
		return nil, nil, err
	}
	if spec.CgroupProcs, err = t.w.stock.cgroups.procs(forking); err != nil {
		return nil, nil, err
	}
	spec.ID, spec.Dir = filepath.Base(m.dir), m.dir
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the directory of a template: %w", err)
	}
	made, err = t.driver.MakeTemplate(ctx, spec, t.w.makeReady)
	if errors.Is(err, errRehearsal) && ctx.Err() == nil {
		// Containers start slower from it, but sooner than in a VM that boots.
		t.w.log.Error("the guest of a template could not rehearse, and is made anew without", "kind", m.kind, "error", err)
		unrehearsed = errors.New(printable(err.Error(), maxFault)) // what it says is the guest's
		made, err = t.driver.MakeTemplate(ctx, spec, awaitListening)
	}
	if err != nil || made.Process() == 0 {
		t.removeDir(m)
	}
	return made, unrehearsed, err
}

// removeDir removes the directory of a template. What is left there is the next worker's to remove; the template is none of it.
func (t *templates) removeDir(m *madeTemplate) {
	if err := os.RemoveAll(m.dir); err != nil {
		t.w.log.Warn("directory of a template not removed", "kind", m.kind, "error", err)
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
			d.State, d.Error, d.Again = "failed", m.err.Error(), timestamppb.New(m.again)
		case m.template != nil:
			d.State, d.Key, d.Bytes = "ready", m.template.Key(), uint64(m.template.Bytes())
			d.Pid = int32(m.template.Process())
			if lacks := m.lacks(); lacks != nil {
				d.Worn, d.Again = lacks.Error(), timestamppb.New(m.again)
			}
			d.Made, d.Took = timestamppb.New(m.made), durationpb.New(m.took)
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *vmv1.Template) int { return cmp.Compare(a.Kind, b.Kind) })
	return all
}
