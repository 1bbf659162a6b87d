// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"fmt"
	"testing"

	busv1 "bulkhead/proto/bus/v1"
)

// TestABusThatIsAwayLosesTheOldestNews.
func TestABusThatIsAwayLosesTheOldestNews(t *testing.T) {
	t.Parallel()
	n := make(news, 3)
	var lost, left []string
	for i := range 5 {
		for _, ev := range n.add(&busv1.Event{Event: fmt.Sprint(i)}) {
			lost = append(lost, ev.Event)
		}
	}
	for range len(n) {
		left = append(left, (<-n).Event)
	}
	if fmt.Sprint(lost, left) != "[0 1] [2 3 4]" {
		t.Errorf("of five events %v are lost, and %v left", lost, left)
	}
}
