// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"time"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// A VM is on trial until its first container is in it. Until then its end is not that of its sandbox: another one takes
// its place, under the same name and in the same directory. A clone that fails before its agent has answered under
// the name that it keeps is replaced by a second clone, and that by a VM that boots: what stands ready may have come to harm
// meanwhile, and a template may be no good. A VM that ends later is replaced once (anothervm.go).

const (
	// clonePart and answerPart of [vm] boot_timeout bound the wait for the agent of a clone, and the first question to it.
	clonePart, answerPart = 6, 12
	// maxClones is how many clones a create tries before it boots a VM.
	maxClones = 2
	// maxFault is what of a reason goes into records and events, in bytes.
	maxFault = 600
)

// trial is that of one VM.
type trial struct {
	ended    chan struct{}
	failed   bool // it is being replaced, and nobody else says how the trial ends
	replaced bool // once ended: another VM takes its place
}

func newTrial() *trial { return &trial{ended: make(chan struct{})} }

// fault is the failure of a VM that another one in its place need not have.
type fault struct{ error }

func (f fault) Unwrap() error { return f.error }

func (s *sandbox) beginTrial() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trial = newTrial()
}

// failTrial begins the replacement of the VM, unless the sandbox is to end with it.
func (s *sandbox) failTrial() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if s.trial != nil {
		s.trial.failed = true
	}
	return true
}

// endTrial says that the VM stays what the sandbox has, or that another one replaces it. Without a trial
// it does nothing, and neither when the VM is being replaced, if it is not that which says so.
func (s *sandbox) endTrial(replaced bool) {
	s.mu.Lock()
	t := s.trial
	if t != nil && t.failed && !replaced {
		t = nil
	} else {
		s.trial = nil
	}
	s.mu.Unlock()
	if t != nil {
		t.replaced = replaced
		close(t.ended)
	}
}

// onTrial tells whether another VM could still take the place of this one.
func (s *sandbox) onTrial() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trial != nil
}

// outlived tells whether the sandbox goes on without this VM, which has ended. Else nobody can join it any more.
func (s *sandbox) outlived(vm hypervisor.VM) bool {
	s.mu.Lock()
	if s.vm != vm { // another has taken its place already, or is about to
		s.mu.Unlock()
		return true
	}
	t := s.trial
	if t == nil {
		s.closing = true
	}
	s.mu.Unlock()
	if t == nil {
		return false
	}
	select {
	case <-t.ended:
		return t.replaced
	case <-s.w.stopping:
		return true
	}
}

// obtain gets the sandbox a VM whose agent has its identity: the one that it has from the pool, a clone, or one that boots. It
// is on trial, unless there is an error.
func (s *sandbox) obtain(ctx context.Context, p *plan, cgroupProcs []string, settle func(context.Context) error) (err error) {
	defer func() {
		if err != nil {
			s.endTrial(false)
		}
	}()
	from := p.from
	var bad error // why the first clone failed
	for clones := 1; ; clones++ {
		err := s.attempt(ctx, p, cgroupProcs, settle)
		if err == nil {
			break
		}
		if !errors.As(err, new(fault)) || p.from == nil || ctx.Err() != nil || s.ending() {
			return err
		}
		if bad == nil {
			bad = err
		}
		p.setback = errors.New("the " + s.origin() + " VM before it failed: " + printable(err.Error(), maxFault))
		if clones >= maxClones || errors.Is(err, hypervisor.ErrTemplateGone) {
			p.from, p.whyBoot = nil, p.setback
		}
		s.w.log.Warn("a VM failed before it was its container's; another takes its place", "sandbox", s.id, "origin", s.origin(), "error", err)
		s.tellReplaced(ctx, err.Error())
		if replaceErr := s.replace(ctx); replaceErr != nil {
			return errors.Join(err, replaceErr)
		}
		if s.ending() { // it was ended meanwhile
			return err
		}
	}
	// Only a VM that boots where clones have failed shows that it is the template: a cgroup without
	// memory, for one, stops both.
	if bad != nil && p.from == nil {
		s.w.stock.templates.distrust(ctx, from, bad)
	}
	return nil
}

// attempt is obtain with one VM.
func (s *sandbox) attempt(ctx context.Context, p *plan, cgroupProcs []string, settle func(context.Context) error) error {
	began := time.Now()
	var err error
	if s.machine() != nil {
		err = settle(ctx)
	} else {
		err = s.start(ctx, p, cgroupProcs)
	}
	if err != nil {
		return err
	}
	s.phase("agent_ready", began)
	limit := processorTime
	if p.from != nil && p.size.VCPUs <= s.machine().Record().VCPUs { // else its kernel has processors to bring up
		limit = min(limit, s.w.cfg.BootTimeout.Duration/answerPart)
	}
	if err := s.grow(ctx, p); err != nil {
		return err
	}
	if err := s.configure(ctx, p, limit); err != nil {
		if vm := s.machine(); !s.alive() {
			err = fmt.Errorf("%w: %s", err, vm.ExitReason())
		}
		return fault{err}
	}
	if vm := s.machine(); processGone(vm) { // what it answered was its last
		return fault{errVMEnded(s.id)}
	}
	return nil
}

// replace ends a VM that failed on trial, so that the sandbox has none.
func (s *sandbox) replace(ctx context.Context) error {
	if !s.failTrial() {
		return errVMEnded(s.id)
	}
	if vm := s.machine(); vm != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if err := vm.Kill(ctx); err != nil {
			s.keepFailed()
			return err
		}
	}
	s.endLinks()
	s.mu.Lock()
	s.vm, s.kernel, s.sessions = nil, "", nil
	s.ready = make(chan struct{})
	s.rec.Pid, s.rec.PidStartTime = 0, 0
	s.mu.Unlock()
	s.endTrial(true)
	return nil
}

// keepFailed leaves a VM that could not be replaced to the sandbox.
func (s *sandbox) keepFailed() {
	s.mu.Lock()
	if s.trial != nil {
		s.trial.failed = false
	}
	s.mu.Unlock()
	s.endTrial(false)
}

func (s *sandbox) origin() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.Origin
}

// patience is how long the agent of a new VM may take to be ready: of a clone not so long that
// no other could be started in the time that is left.
func (s *sandbox) patience(ctx context.Context, p *plan) time.Duration {
	limit := s.w.cfg.BootTimeout.Duration
	if p.from == nil {
		return limit
	}
	limit /= clonePart
	if at, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(at)/4)
	}
	return limit
}

// came is how the VM that is about to start comes to be, for the record: origin, why not otherwise, and the key of its template.
func (p *plan) came() func(*vmv1.Sandbox) {
	origin, key, why := "boot", "", p.whyBoot
	if p.from != nil {
		origin, key, why = "template", p.from.Key(), p.setback
	}
	return func(rec *vmv1.Sandbox) {
		rec.Origin, rec.OriginReason, rec.Template = origin, "", key
		if why != nil {
			rec.OriginReason = why.Error()
		}
	}
}
