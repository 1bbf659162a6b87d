// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import "context"

const (
	// firstChannel is that of the container for which the VM was started.
	firstChannel = 1
	// channelBlock is how many channel numbers are recorded as taken at once.
	channelBlock = 1 << 16
)

// channelNumbers gives each number of a stdio channel once in the life of a VM. The records of processes tell only which
// numbers are in use: the guest may still have one whose process's end is recorded, as the worker died before the guest was told
// that its exit is known. So numbers come from blocks, whose beginning is in the sandbox's record before any is given, and the next
// worker begins behind the block.
type channelNumbers struct {
	next  uint32
	block uint32 // where the present one begins: channels_from of the sandbox's record
}

// take returns the next number, and whether it is the first of a block that is not recorded yet.
func (n *channelNumbers) take() (number uint32, recordFirst bool) {
	if n.next-n.block >= channelBlock {
		n.block, recordFirst = n.next, true
	}
	n.next++
	return n.next - 1, recordFirst
}

// after goes behind the recorded block and every number in use; the block that begins there is not recorded yet.
func (n *channelNumbers) after(block uint32, used ...uint32) {
	n.next = block + channelBlock
	for _, u := range used {
		n.next = max(n.next, u+1)
	}
	n.block = n.next
}

// channel returns a stdio channel number never used before in this VM.
func (s *sandbox) channel() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	number, recordFirst := s.channels.take()
	if recordFirst {
		s.recordChannelsLocked(context.Background()) // saving has a deadline of its own
	}
	return number
}

// channelsAfter goes past the channel numbers of the workers before this one. used are those of recorded processes.
func (s *sandbox) channelsAfter(ctx context.Context, used []uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels.after(s.rec.ChannelsFrom, used...)
	s.recordChannelsLocked(ctx)
}

// recordChannelsLocked writes down the present block. The caller holds s.mu.
func (s *sandbox) recordChannelsLocked(ctx context.Context) {
	s.rec.ChannelsFrom = s.channels.block
	if s.removed {
		return
	}
	if err := s.w.store.saveSandbox(ctx, s.rec); err != nil {
		s.w.log.Error("a later worker may give channel numbers of this one again", "sandbox", s.id, "error", err)
	}
}
