// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// fill starts VMs until the pool is full. It is false when that has to be tried again later.
func (k *stock) fill(ctx context.Context) bool {
	k.dropStale(ctx)
	for ctx.Err() == nil {
		k.mu.Lock()
		have := len(k.pool)
		k.mu.Unlock()
		if have >= k.w.cfg.Pool {
			k.say("")
			return true
		}
		if short := k.memoryShort(); short != "" {
			k.say(short)
			return false
		}
		if k.w.budget.somebodyNeeds() {
			k.say(neededElsewhere)
			return false
		}
		s, err := k.start(ctx)
		if err != nil {
			if ctx.Err() == nil {
				k.say(err.Error())
				k.w.log.Warn("no VM made ready for the pool", "error", err)
			}
			return false
		}
		k.mu.Lock()
		k.pool = append(k.pool, s)
		k.mu.Unlock()
		k.w.tasks.Go(func() { k.watch(s) })
	}
	return true
}

// start starts one VM and waits until its agent is ready. When a second one fails too, that is no accident.
func (k *stock) start(ctx context.Context) (*sandbox, error) {
	base, err := k.w.base(plainKind)
	if err != nil {
		return nil, err
	}
	if base.From, err = k.templates.current(ctx, plainKind, base); err != nil {
		return nil, err
	}
	if base.CgroupProcs, err = k.cgroups.procs(making); err != nil {
		return nil, err
	}
	s, err := k.startFrom(ctx, base)
	if errors.As(err, new(fault)) && ctx.Err() == nil {
		k.w.log.Warn("a VM failed on its way into the pool; another is started", "error", err)
		if s, err = k.startFrom(ctx, base); errors.As(err, new(fault)) {
			k.templates.distrust(ctx, base.From, err)
		}
	}
	return s, err
}

func (k *stock) startFrom(ctx context.Context, base hypervisor.Spec) (_ *sandbox, err error) {
	w, p := k.w, &plan{}
	s := w.newSandbox(&vmv1.Sandbox{
		Id: newSandboxID(), Created: timestamppb.Now(), State: "pooled", Origin: "pool",
		TrustClass: p.trustClass(), Mergeable: p.mergeable(w.cfg.MergeClass),
		Hypervisor: w.driver.Name(), Accelerator: string(base.Accelerator), AcceleratorReason: base.AcceleratorReason,
		Vcpus: base.VCPUs, MemoryBytes: base.MemoryBytes, Template: base.From.Key(),
	})
	s.pooled = true
	w.mu.Lock()
	w.sandboxes[s.id] = s
	w.mu.Unlock()
	defer func() {
		if err != nil {
			k.discard(ctx, s, "it did not become ready for the pool")
		}
	}()
	base.ID, base.Dir, base.Mergeable = s.id, w.store.sandboxDir(s.id), s.rec.Mergeable
	if err := os.MkdirAll(base.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the sandbox's directory: %w", err)
	}
	if err := s.update(ctx, func(*vmv1.Sandbox) {}); err != nil {
		return nil, err
	}
	if err := w.budget.claim(s, base.MemoryBytes); err != nil {
		return nil, err
	}
	defer w.budget.settle(s)
	began := time.Now()
	vm, err := w.driver.Start(ctx, base)
	if err != nil {
		return nil, fault{err}
	}
	k.templates.cloned(base.From)
	s.adoptVM(vm)
	if err := s.awaitReady(ctx, vm, w.cfg.BootTimeout.Duration); err != nil {
		return nil, fault{err}
	}
	s.phase("pool_ready", began)
	return s, s.update(ctx, func(rec *vmv1.Sandbox) { rec.Kernel = s.kernel })
}

// take takes a VM out of the pool for a plan, or returns nil. The caller holds w.mu.
func (k *stock) take(ctx context.Context, p *plan) *sandbox {
	if k.w.cfg.Pool == 0 || p.from == nil || p.labelled() {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.wake()
	for len(k.pool) > 0 {
		s := k.pool[0]
		k.pool = k.pool[1:]
		rec := s.record()
		switch {
		case !s.alive() || s.ending():
			continue // watch removes it
		case rec.Template != p.from.Key():
			k.w.tasks.Go(func() { k.discard(ctx, s, "its template is not that of today's parts") })
			continue
		case rec.Mergeable != p.mergeable(k.w.cfg.MergeClass):
			k.pool = slices.Insert(k.pool, 0, s) // it is for others
			k.missed++
			return nil
		}
		if !s.takeOut() {
			continue // it has ended, or is being taken away
		}
		k.taken++
		s.mu.Lock()
		s.rec.TrustClass, s.rec.MountLabels, s.rec.Created = p.trustClass(), []string{p.mountLabel}, timestamppb.Now()
		s.mu.Unlock()
		return s
	}
	k.missed++
	return nil
}

// watch removes a VM of the pool that ends by itself.
func (k *stock) watch(s *sandbox) {
	select {
	case <-k.w.stopping:
		return
	case <-s.over:
	}
	s.mu.Lock()
	pooled, reason := s.pooled, s.rec.EndReason
	s.mu.Unlock()
	if !pooled {
		return
	}
	k.w.log.Warn("a VM of the pool has ended", "sandbox", s.id, "reason", reason)
	k.discard(context.Background(), s, "it ended")
	k.wake()
}

// discard takes away a VM that no container has.
func (k *stock) discard(ctx context.Context, s *sandbox, why string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	k.mu.Lock()
	k.pool = slices.DeleteFunc(k.pool, func(o *sandbox) bool { return o == s })
	k.mu.Unlock()
	k.w.mu.Lock()
	mine := s.unpool()
	if mine {
		delete(k.w.sandboxes, s.id)
	}
	k.w.mu.Unlock()
	if !mine {
		return // somebody else is at it, or a container has it by now
	}
	err := s.kill(ctx, why)
	if err == nil {
		err = s.remove(ctx)
	}
	if err != nil {
		k.w.log.Error("VM of the pool not removed; the next start of the worker does", "sandbox", s.id, "error", err)
	}
}

// dropStale ends the VMs whose template is not the one there is now.
func (k *stock) dropStale(ctx context.Context) {
	key := k.templates.key(plainKind)
	k.mu.Lock()
	pool := slices.Clone(k.pool)
	k.mu.Unlock()
	for _, s := range pool {
		if s.record().Template != key {
			k.discard(ctx, s, "its template is not that of today's parts")
		}
	}
}

// drain ends all that waits.
func (k *stock) drain(ctx context.Context, why string) {
	k.mu.Lock()
	pool := slices.Clone(k.pool)
	k.mu.Unlock()
	for _, s := range pool {
		k.discard(ctx, s, why)
	}
}

// yield ends all that waits, as a VM that containers have needs its memory.
func (k *stock) yield(ctx context.Context) {
	k.mu.Lock()
	empty := len(k.pool) == 0
	k.mu.Unlock()
	if empty {
		return
	}
	k.say(neededElsewhere)
	k.drain(ctx, neededElsewhere)
	time.AfterFunc(stockRetry, k.wake)
}

// takeOut makes a VM of the pool a container's, on trial. It is false when the VM is no more the pool's, or
// ends. The caller holds w.mu.
func (s *sandbox) takeOut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pooled || s.closing {
		return false
	}
	s.pooled, s.trial = false, newTrial()
	return true
}

// unpool makes a VM of the pool somebody's who takes it away; it is false when it is no more the pool's. The
// caller holds w.mu.
func (s *sandbox) unpool() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.pooled
	s.pooled = false
	return was
}

// spare tells whether the VM waits in the pool, or is on its way there.
func (s *sandbox) spare() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pooled
}
