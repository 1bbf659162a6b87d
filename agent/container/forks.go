// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"fmt"
	"sync"
	"time"

	"bulkhead/agent/heap"
)

// LeastProcessors is how many threads of Go's have to be able to run in the agent at once (runtime.GOMAXPROCS), also
// in a guest with one processor. One of them stands still while a process is forked, without the scheduler's knowledge, until
// that has executed its program; forks come one after the other (syscall.ForkLock).
const LeastProcessors = 2

// forks keeps the agent going while processes are forked. One that is born into the cgroup of a container uses that
// one's memory before it has executed its program, and waits at the border of the containers' memory like all others. It is the agent
// that has to move the border: so nothing may stop all of its threads meanwhile, which the garbage collector
// does for a moment, and which would last until the fork is over.
type forks struct {
	mu    sync.Mutex    // guards all below
	n     int           // under way
	since time.Time     // without a collection
	over  chan struct{} // closed when none is under way any more
}

// forksAtOnce is for how long forks may overlap: then the garbage has its turn.
const forksAtOnce = 5 * time.Second

// begin waits until a process may be forked; end must follow.
func (f *forks) begin(ctx context.Context) error {
	for {
		f.mu.Lock()
		if f.n == 0 {
			heap.Rest()
			f.since, f.over = time.Now(), make(chan struct{})
		}
		if f.n == 0 || time.Since(f.since) < forksAtOnce {
			f.n++
			f.mu.Unlock()
			return nil
		}
		over := f.over
		f.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
			return fmt.Errorf("waiting for processes that are being started: %w", ctx.Err())
		}
	}
}

func (f *forks) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 {
		heap.Resume()
		close(f.over)
	}
}
