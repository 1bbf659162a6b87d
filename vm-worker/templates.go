// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"bulkhead/vm-worker/hypervisor"
)

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

// close gives all templates up.
func (t *templates) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.byKind {
		t.dropLocked(m)
	}
}
