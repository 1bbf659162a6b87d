// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// The numbers of many VMs that live at once.
const (
	liveStarts = "live_starts_per_s"
	liveExec   = "live_exec_true"
)

const (
	// liveReserve is the memory that is left to the host, in bytes.
	liveReserve = 1 << 30
	// liveStep is how many starts are a sample of their rate, and how often they are told of.
	liveStep = 25
)

// measureLive starts VMs, several at a time, and asks each of them when all are there.
func measureLive(ctx context.Context, b *bench) (err error) {
	if b.bulkhead == nil || !b.results.wants("vms_live", liveStarts, liveExec) {
		return nil
	}
	if b.live == 0 {
		b.results.leaveOut("vms_live", "it takes minutes: make bench-live, or make bench LIVE=500")
		return nil
	}
	if err := awaitStock(ctx, b.conn); err != nil {
		return err
	}
	alive, err := b.startLive(ctx)
	defer func() {
		b.tell("live: removing %d", len(alive))
		err = errors.Join(err, removeAll(ctx, alive))
	}()
	if err != nil {
		return err
	}
	for i, c := range alive {
		if i%liveStep == 0 {
			b.tell("live: exec in %d of %d", i, len(alive))
		}
		began := time.Now()
		if err := c.exec(ctx, b.bundles.exec); err != nil {
			return err
		}
		b.results.addTime(liveExec, time.Since(began))
	}
	b.results.add("vms_live", "VMs", float64(len(alive)))
	return nil
}

// startLive starts as many as were asked for, or as memory takes. Those that it returns
// are there, also on an error.
func (b *bench) startLive(ctx context.Context) (alive []*container, err error) {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(startersAtOnce)
	var mu sync.Mutex // guards alive and since
	since := time.Now()
	started := func(c *container, available float64) {
		mu.Lock()
		defer mu.Unlock()
		alive = append(alive, c)
		if len(alive)%liveStep == 0 {
			rate := liveStep / time.Since(since).Seconds()
			since = time.Now()
			b.results.add(liveStarts, "1/s", rate)
			b.tell("live: %d of %d, %.1f starts/s; the host can give %.1f GB more", len(alive), b.live, rate, available/1e9)
		}
	}
	for i := range b.live {
		available, err := field("/proc/meminfo", "MemAvailable:")
		if err != nil {
			err = errors.Join(err, group.Wait()) // before alive is read
			return alive, err
		}
		if available < liveReserve {
			b.results.leaveOut("vms_live", fmt.Sprintf("of %d wanted the host had memory for %d", b.live, i))
			break
		}
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			c, err := b.bulkhead.launch(groupCtx, numbered("live", i), b.bundles.sleep, stdio{})
			if err == nil {
				started(c, available)
			}
			return err
		})
	}
	err = group.Wait() // before alive is read
	return alive, err
}
