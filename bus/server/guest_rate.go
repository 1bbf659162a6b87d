// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import "time"

// The rate of a guest. The agent needs a few operations per command; operations
// are counted as well as bytes, because a PUB of eleven bytes costs the server
// as much as a large one.
const (
	guestOpsPerSecond   = 5000
	guestBytesPerSecond = 4 << 20
	guestBurst          = 250 * time.Millisecond // of the rate, at once
	// floodLimit is how long a guest may push against its rate without a pause.
	// Until then it is slowed down by not being read.
	floodLimit = 1200 * time.Millisecond
)

// rate is a token bucket over operations and bytes, kept as the time at which
// all that was taken is paid for.
type rate struct {
	ops, bytes time.Time // paid until; in the past when idle
	pressed    time.Time // since when the guest has been ahead of its rate without a pause, or zero
}

// take books one operation of n bytes. It tells how long to wait before reading
// on, and whether the guest has flooded for too long.
func (r *rate) take(now time.Time, n int) (wait time.Duration, flooded bool) {
	r.ops = later(r.ops, now).Add(time.Second / guestOpsPerSecond)
	r.bytes = later(r.bytes, now).Add(time.Duration(n) * time.Second / guestBytesPerSecond)
	ahead := later(r.ops, r.bytes).Sub(now)
	switch {
	case ahead > guestBurst:
		if r.pressed.IsZero() {
			r.pressed = now
		}
		return ahead - guestBurst, now.Sub(r.pressed) > floodLimit
	case ahead < guestBurst/2:
		r.pressed = time.Time{}
	}
	return 0, false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
