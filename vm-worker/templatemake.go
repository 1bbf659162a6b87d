// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"bulkhead/vm-worker/hypervisor"
)

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

// dir is where a guest becomes a template, and where the process is recorded that forks VMs from then on.
func (t *templates) dir(k kind) string { return t.w.store.sandboxDir("template-" + string(k)) }

// removeDir removes the directory of a template. What is left there is the next worker's to remove; the template is none of it.
func (t *templates) removeDir(m *madeTemplate) {
	if err := os.RemoveAll(m.dir); err != nil {
		t.w.log.Warn("directory of a template not removed", "kind", m.kind, "error", err)
	}
}

// tellMade tells of a template, and what it lacks.
func (t *templates) tellMade(ctx context.Context, m *madeTemplate) {
	told := map[string]string{"key": m.template.Key(), "mib": itoa(uint32(m.template.Bytes() >> 20))}
	if lacks := m.lacks(); lacks != nil {
		told["worn"], told["retry_in"] = lacks.Error(), time.Until(m.again).Round(time.Second).String()
	}
	t.w.event(ctx, "template", string(m.kind), "made", told)
}

func (t *templates) tellFailed(ctx context.Context, m *madeTemplate) {
	pause := time.Until(m.again).Round(time.Second)
	t.w.log.Error("no template; VMs boot until one is made", "kind", m.kind, "retry_in", pause, "error", m.err)
	t.w.event(ctx, "template", string(m.kind), "failed", map[string]string{"error": m.err.Error(), "retry_in": pause.String()})
}
