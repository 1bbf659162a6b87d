// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import "testing"

// However many numbers a worker gives, and however often there is another, which knows what was recorded and which processes
// are left.
func TestChannelNumbersAreGivenOnce(t *testing.T) {
	t.Parallel()
	numbers := channelNumbers{next: firstChannel}
	var recorded, last uint32
	for worker, gives := range []int{1, 3, 0, channelBlock - 1, channelBlock, channelBlock + 1, 3*channelBlock + 7, 2} {
		for range gives {
			n, recordFirst := numbers.take()
			if recordFirst {
				recorded = numbers.block
			}
			if n <= last {
				t.Fatalf("worker %d gives %d after %d", worker, n, last)
			}
			last = n
		}
		numbers = channelNumbers{next: firstChannel}
		numbers.after(recorded)
		recorded = numbers.block
	}
	// An older daemon recorded no blocks, only processes.
	numbers.after(0, 5, 9*channelBlock, 7)
	if n, _ := numbers.take(); n != 9*channelBlock+1 {
		t.Errorf("after number %d in use comes %d", 9*channelBlock, n)
	}
}
