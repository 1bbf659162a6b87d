// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// measureLive starts VMs, one after the other has room, and asks each of them.
func measureLive(ctx context.Context, b *bench) (err error) {
	if b.live == 0 {
		b.results.leaveOut("vms_live", "it takes minutes: make bench-live, or -live N")
		return nil
	}
	if b.bulkhead == nil || !b.results.wants("vms_live") {
		return nil
	}
	var alive []*container
	defer func() { err = errors.Join(err, removeAll(ctx, alive)) }()
	began := time.Now()
	for len(alive) < b.live {
		available, err := field("/proc/meminfo", "MemAvailable:")
		if err != nil {
			return err
		}
		if available < liveReserve {
			b.results.leaveOut("vms_live", fmt.Sprintf("of %d wanted the host had memory for %d", b.live, len(alive)))
			break
		}
		group, groupCtx := errgroup.WithContext(ctx)
		more := make([]*container, min(startersAtOnce, b.live-len(alive)))
		for i := range more {
			id := fmt.Sprintf("live-%d", len(alive)+i)
			group.Go(func() (err error) {
				more[i], err = b.bulkhead.launch(groupCtx, id, b.bundles.sleep, stdio{})
				return err
			})
		}
		err = group.Wait()
		for _, c := range more {
			if c != nil {
				alive = append(alive, c)
			}
		}
		if err != nil {
			return err
		}
		b.progress("live: %d/%d", len(alive), b.live)
	}
	b.results.add("live_starts_per_s", "1/s", float64(len(alive))/time.Since(began).Seconds())
	answered := 0
	for _, c := range alive {
		b.progress("live: exec %d/%d", answered+1, len(alive))
		began := time.Now()
		if err := c.exec(ctx, b.bundles.exec); err != nil {
			return err
		}
		b.results.addTime("live_exec_true", time.Since(began))
		answered++
	}
	b.results.add("vms_live", "VMs", float64(answered))
	return nil
}

// liveReserve is the memory that is left to the host, in bytes.
const liveReserve = 1 << 30
