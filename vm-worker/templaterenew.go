// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A template may be less than it could be: its guest did not rehearse, or no process forks its VMs. It serves all the same, so a better
// one is made beside it, after a pause that doubles while the next is no better, as what a host's QEMU lacks is not there the next
// time either. One that could not be made at all is tried again likewise, and sooner, as all VMs boot meanwhile. Both wait while the
// host is short of memory, which a guest that boots takes.

const (
	// templateRetry is the first pause, and the least before a template is made anew for what it lost later.
	templateRetry = 5 * time.Minute
	// longestRetry is the longest pause after a template that serves.
	longestRetry = 24 * time.Hour
	// longestWithout is the longest pause without one.
	longestWithout = time.Hour
)

// lacks tells why a template is less than it could be; nil while there is no reason.
func (m *madeTemplate) lacks() error {
	var worn error
	if m.template != nil {
		worn = m.template.Worn()
	}
	switch {
	case m.unrehearsed == nil:
		return worn
	case worn == nil:
		return m.unrehearsed
	}
	return fmt.Errorf("%w; %w", m.unrehearsed, worn)
}

// faults counts what it lacks.
func (m *madeTemplate) faults() (n int) {
	for _, err := range []error{m.unrehearsed, m.template.Worn()} {
		if err != nil {
			n++
		}
	}
	return n
}

// pauseLocked is the pause after a template that lacks something, or nothing yet. The caller holds t.mu.
func (t *templates) pauseLocked(k kind, lacks error) time.Duration {
	if lacks == nil {
		delete(t.pauses, k)
		return t.retry
	}
	t.pauses[k] = min(max(2*t.pauses[k], t.retry), longestRetry)
	return t.pauses[k]
}

// failedLocked is a template that could not be made, of what key tells. The caller holds t.mu.
func (t *templates) failedLocked(k kind, err error, key string) *madeTemplate {
	return &madeTemplate{kind: k, err: err, key: key, again: time.Now().Add(min(t.pauseLocked(k, err), longestWithout))}
}

// due are the templates of which others are to be made now, and how long it is until the next is; 0: there is none.
func (t *templates) due() (now []*madeTemplate, next time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.byKind {
		if m.err == nil && (m.template == nil || m.lacks() == nil) {
			continue
		}
		wait := time.Until(m.again)
		switch {
		case wait <= 0:
			now = append(now, m)
		case next == 0 || wait < next:
			next = wait
		}
	}
	return now, next
}

// renew makes the templates that are due, one after the other. It returns after how long it wants to be called again; 0: there is no reason.
func (k *stock) renew(ctx context.Context) time.Duration {
	due, next := k.templates.due()
	if len(due) == 0 {
		return next
	}
	if short := k.memoryShort(); short != "" || k.w.budget.somebodyNeeds() {
		k.w.log.Debug("no other template is made while memory is short", "reason", short)
		return stockRetry
	}
	for _, m := range due {
		if m.err != nil {
			k.templates.make(ctx, m.kind)
		} else {
			k.templates.improve(ctx, m)
		}
	}
	k.wake() // a pool may be filled from them
	_, next = k.templates.due()
	return next
}

// improve makes another template of the kind, and keeps the one of the two that lacks less.
func (t *templates) improve(ctx context.Context, old *madeTemplate) {
	k, lacks := old.kind, old.lacks()
	t.w.log.Warn("another template is made", "kind", k, "error", lacks)
	next := t.try(ctx, k, old.dir)
	if ctx.Err() != nil && next.template == nil {
		return // the worker ends
	}
	t.mu.Lock()
	better := next.template != nil && next.faults() < old.faults()
	gone := t.byKind[k] != old // given up meanwhile, with what it was made of
	var pause time.Duration
	switch {
	case gone:
		t.dropLocked(next)
	case better:
		t.dropLocked(old)
		t.byKind[k] = next
		next.again = next.made.Add(t.pauseLocked(k, next.lacks()))
	default:
		t.dropLocked(next)
		pause = t.pauseLocked(k, lacks)
		old.again = time.Now().Add(pause)
	}
	t.mu.Unlock()
	switch {
	case gone:
		t.w.stock.wake()
	case better:
		t.tellMade(ctx, next)
	default:
		why := next.err
		if why == nil {
			why = errors.New("it lacks as much: " + next.lacks().Error())
		}
		t.w.log.Warn("another template is no better, and the former kept", "kind", k, "retry_in", pause, "error", why)
		t.w.event(ctx, "template", string(k), "kept", map[string]string{"worn": lacks.Error(), "error": why.Error(), "retry_in": pause.String()})
	}
}
