// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"sync"
	"time"
)

// stock is what stands ready for the next create: templates, and the pool of VMs that
// continue from one and wait. One goroutine makes both, one after the other, in a
// cgroup of little weight, so that what containers do goes first.
//
// Lock order: Worker.mu, then stock.mu, then templates.mu.
type stock struct {
	w         *Worker
	templates *templates
	cgroups   stockCgroups
	parts     *parts        // nil: nobody tells when a file changes
	work      chan struct{} // capacity 1: something may be missing
	done      chan struct{} // closed when run has ended; nil: it was not begun

	mu      sync.Mutex // guards all below
	pool    []*sandbox // ready, oldest first
	taken   uint64
	missed  uint64
	waiting string // why the pool is not full
}

const (
	// stockRetry is the pause after something could not be made, or not for want of memory.
	stockRetry = 20 * time.Second
	// neededElsewhere is why there is no pool, or a smaller one.
	neededElsewhere = "VMs in use need the memory"
)

func (w *Worker) newStock() *stock {
	return &stock{w: w, templates: w.newTemplates(), cgroups: stockCgroups{w: w}, work: make(chan struct{}, 1)}
}

// wake has run look for what is missing.
func (k *stock) wake() {
	select {
	case k.work <- struct{}{}:
	default:
	}
}

// begin has run run.
func (k *stock) begin() {
	k.done = make(chan struct{})
	k.w.tasks.Go(k.run)
}

// run makes what is missing until the worker stops. A pool is wanted from the start; a
// template without one, when the first VM would have used it.
func (k *stock) run() {
	defer close(k.done)
	k.cgroups.removeLeft(k.w.context())
	if k.templates.driver == nil {
		return
	}
	k.followParts()
	if k.w.cfg.Pool > 0 {
		k.templates.want(plainKind)
		k.wake()
		k.w.tasks.Go(k.watchPressure)
	}
	retry := time.NewTimer(stockRetry)
	retry.Stop()
	for {
		select {
		case <-k.w.stopping:
			return
		case <-k.work:
		case <-retry.C:
		}
		k.dropStale(k.w.context()) // before a template is made in its place, which takes a boot
		for _, kind := range k.templates.missing() {
			k.templates.make(k.w.context(), kind)
		}
		filled := k.fill(k.w.context())
		again := k.renew(k.w.context()) // after: a pool that is empty is missed sooner
		if !filled && (again == 0 || again > stockRetry) {
			again = stockRetry
		}
		if again > 0 {
			retry.Reset(again)
		}
	}
}

func (k *stock) say(why string) {
	k.mu.Lock()
	k.waiting = why
	k.mu.Unlock()
}

// close waits for run, and takes away what nobody has taken.
func (k *stock) close() {
	if k.done == nil {
		return
	}
	<-k.done
	ctx := context.Background()
	k.drain(ctx, "the worker ends")
	k.templates.close()
	k.cgroups.remove(ctx)
}
