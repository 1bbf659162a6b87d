// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package heap

import (
	"runtime/metrics"
	"testing"
)

// node is for a heap that takes long to mark.
type node struct{ next *node }

// TestARestBeginsWhenTheCollectionUnderWayIsOver: its last step stops all threads, as its first does.
func TestARestBeginsWhenTheCollectionUnderWayIsOver(t *testing.T) {
	Follow()
	var list *node
	for range 1 << 20 {
		list = &node{list}
	}
	cycles := func() uint64 { // without stopping the world, or waiting for a collection
		s := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	met := 0
	for round := 0; met < 10 && round < 500; round++ {
		before := cycles()
		for range 1 << 6 {
			waste = make([]byte, 1<<14)
		}
		Rest()
		at := cycles()
		if at != before {
			met++
		}
		for range 1 << 9 {
			waste = make([]byte, 1<<14)
		}
		if now := cycles(); now != at {
			t.Fatalf("%d collections ended in a rest", now-at)
		}
		Resume()
	}
	if met == 0 {
		t.Error("no rest met a collection")
	}
	if list == nil {
		t.Error("the list is gone")
	}
}
