// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"time"

	"bulkhead/bus/stdio"
)

// What a guest may ask of the host's processor. Its window bounds how much new
// output it sends; these bound the frames it cuts that into, the frames that carry
// none, and output that was sent before.
const (
	// frameRate is how many frames a second are taken. A process that writes
	// byte by byte is slowed to it; full frames reach the link's own limit first.
	frameRate = 50_000
	// controlRate is how many of them may be other than DATA. An honest guest
	// acknowledges each 64 KiB of input and says little else.
	controlRate = 10_000
	// frameBurst is how long of either rate may come at once.
	frameBurst = 250 * time.Millisecond
	// floodLimit is how long a guest may press against controlRate.
	floodLimit = 1200 * time.Millisecond
	// repeatRate and repeatBurst bound, in bytes, output that was sent before. After
	// a relay has lost frames at most its window comes again; a whole guest's
	// worth of relays fits the burst.
	repeatRate  = 4 << 20
	repeatBurst = 64 << 20
)

// pace keeps a guest to its rates. Each is kept as the time at which all that
// was taken is paid for.
type pace struct {
	frames, control, repeats time.Time
	pressed                  time.Time // since when control has been ahead without a pause, or zero
}

// frame takes one frame and tells how long to wait before acting on it. The
// error is for a guest that floods.
func (p *pace) frame(now time.Time, control bool) (wait time.Duration, err error) {
	p.frames = later(p.frames, now).Add(time.Second / frameRate)
	if control {
		p.control = later(p.control, now).Add(time.Second / controlRate)
	}
	ahead := p.control.Sub(now)
	switch {
	case ahead > frameBurst:
		if p.pressed.IsZero() {
			p.pressed = now
		}
		if now.Sub(p.pressed) > floodLimit {
			return 0, fmt.Errorf("%w: for more than %v it sent over %d control frames a second", ErrViolation, floodLimit, controlRate)
		}
	case ahead < frameBurst/2:
		p.pressed = time.Time{}
	}
	return max(0, max(ahead, p.frames.Sub(now))-frameBurst), nil
}

// repeated takes n bytes that were sent before.
func (p *pace) repeated(now time.Time, n uint64) error {
	if n == 0 {
		return nil
	}
	p.repeats = later(p.repeats, now).Add(time.Duration(n) * time.Second / repeatRate)
	if p.repeats.Sub(now) > repeatBurst/repeatRate*time.Second {
		return fmt.Errorf("%w: it repeats output that nobody asked for again, more than %d MiB a second", ErrViolation, repeatRate>>20)
	}
	return nil
}

// advance notes how far a stream of the channel has come, and tells how many of
// the frame's bytes were sent before.
func (ch *channel) advance(f stdio.Frame) (repeated uint64) {
	end := f.Off + uint64(f.Len)
	sent := &ch.sent[f.Stream]
	if f.Off < *sent {
		repeated = min(end, *sent) - f.Off
	}
	*sent = max(*sent, end)
	return repeated
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
