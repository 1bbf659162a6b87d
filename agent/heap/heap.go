// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package heap has the agent's memory collected when there is enough to collect, and never by the clock.
//
// Go's runtime collects every two minutes, whatever happens. In the clone of a template that takes 40 ms of an idle guest's processor
// time, and, as marking writes next to what it marks, it makes every page of the heap that was the template's the clone's own:
// 1 MB of the host for each VM. The clock is off only with the percentage, so a limit that follows the heap takes its place.
//
// It imports nothing of ours. The invariant to remember: the limit is above what lives by as much as
// is allocated between two collections; else the runtime would collect without end.
package heap

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

const (
	// least is what the heap may hold before it is collected, however little of it lives.
	least = 4 << 20
	// The runtime keeps that far below the limit (runtime, memoryLimitHeapGoal).
	headroom, headroomPart = 1 << 20, 32
)

// collector is the one of this process.
var collector struct {
	begun   sync.Once
	mu      sync.Mutex // guards what follows
	limit   int64
	resting bool
}

// Follow sets the limit now and after each collection.
func Follow() {
	collector.begun.Do(func() {
		debug.SetGCPercent(-1)
		f := &follower{}
		for _, name := range []string{
			"/memory/classes/total:bytes", "/memory/classes/heap/released:bytes", "/memory/classes/heap/free:bytes", "/memory/classes/heap/objects:bytes",
			"/gc/heap/live:bytes",
		} {
			f.samples = append(f.samples, metrics.Sample{Name: name})
		}
		f.follow()
	})
}

// Rest lets no collection begin until Resume, and returns when the one under way is over.
func Rest() {
	Follow()
	collector.mu.Lock()
	collector.resting = true
	debug.SetMemoryLimit(math.MaxInt64)
	collector.mu.Unlock()
	debug.SetGCPercent(-1) // it is that already: what counts is that it waits (runtime, setGCPercent)
}

// Resume ends a rest.
func Resume() {
	collector.mu.Lock()
	defer collector.mu.Unlock()
	collector.resting = false
	debug.SetMemoryLimit(collector.limit)
}

// follower is garbage at once: its finalizer tells of the next collection.
type follower struct{ samples []metrics.Sample }

func (f *follower) follow() {
	metrics.Read(f.samples)
	value := func(i int) uint64 { return f.samples[i].Value.Uint64() }
	others := value(0) - value(1) - value(2) - value(3) // stacks, and what the runtime keeps account in
	goal := max(least, 3*value(4))
	collector.mu.Lock()
	defer collector.mu.Unlock()
	collector.limit = int64(others + goal + max(headroom, goal/headroomPart))
	if !collector.resting {
		debug.SetMemoryLimit(collector.limit)
	}
	runtime.SetFinalizer(f, (*follower).follow)
}
