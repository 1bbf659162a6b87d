// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package heap

import (
	"runtime"
	"runtime/debug"
	"testing"
)

var keep [][]byte

// TestTheHeapIsCollectedByWhatItHolds: little garbage makes few collections and a small heap, and much that lives does not make
// one collection follow the other.
func TestTheHeapIsCollectedByWhatItHolds(t *testing.T) {
	Follow()
	if percent := debug.SetGCPercent(-1); percent != -1 {
		t.Fatalf("the clock collects, at %d %%", percent)
	}
	defer func() { keep = nil }()
	for _, living := range []int{0, 1, 16, 64} { // MiB
		keep = nil
		for range living << 4 {
			keep = append(keep, make([]byte, 1<<16))
		}
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const garbage = 256
		most := uint64(0)
		for range garbage {
			for range 1 << 8 {
				waste = make([]byte, 1<<12)
			}
			runtime.ReadMemStats(&after)
			most = max(most, after.HeapAlloc)
		}
		collections, heap := int(after.NumGC-before.NumGC), int(most>>20)
		t.Logf("%d MiB live: %d collections for %d MiB of garbage, at most %d MiB of heap", living, collections, garbage, heap)
		if least := min(garbage/max(4*living, 8), 4); collections < least || collections > garbage {
			t.Errorf("%d MiB live: %d collections for %d MiB of garbage", living, collections, garbage)
		}
		if heap > 4*living+64 { // on a busy machine the collector is late
			t.Errorf("%d MiB live: the heap held %d MiB", living, heap)
		}
	}
}

var waste []byte

// TestNothingIsCollectedInARest, whatever is allocated, and collections go on after it.
func TestNothingIsCollectedInARest(t *testing.T) {
	collections := func() uint32 {
		var before, after runtime.MemStats
		runtime.GC() // one that has begun is over then
		runtime.ReadMemStats(&before)
		for range 1 << 12 {
			waste = make([]byte, 1<<14)
		}
		runtime.ReadMemStats(&after)
		return after.NumGC - before.NumGC
	}
	Rest()
	if n := collections(); n != 0 {
		t.Errorf("%d collections in a rest", n)
	}
	Resume()
	if n := collections(); n == 0 {
		t.Error("no collection after it")
	}
}
