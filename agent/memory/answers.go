// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import "time"

// Set tells what the machine is now: as the host's answer to the wish with this number and all older ones,
// or, with 0, by its own decision.
func (g *Governor) Set(m Machine, number uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.machine.Has
	if was == 0 {
		total, _, err := g.meminfo()
		if err != nil {
			return err
		}
		g.unseen = m.Has - min(total, m.Has)
	}
	g.machine, g.refused, g.taking = m, time.Time{}, false
	g.answered(number)
	if m.Has != was {
		g.calm = 0
	}
	if m.Has > was {
		g.tick, g.hold = tick, 0
	}
	defer g.wake()
	if g.hungry {
		return g.feed()
	}
	return g.draw()
}

// Refused tells that the host has no more to give now, as the answer to the wish with this number.
func (g *Governor) Refused(m Machine, number uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.machine, g.taking = m, false
	current := number == g.number && g.asked > m.Has // else it is not what the containers wait for now
	g.answered(number)
	if !current {
		g.wake()
		return g.draw()
	}
	g.hungry, g.refused = false, time.Now()
	// Who lives on cached files would wait at the border again and again, and could do without.
	if time.Since(g.denied) > 2*maxRefused {
		g.hold = 0
	}
	g.hold, g.denied = min(max(2*g.hold, refusedTime), maxRefused), time.Now()
	g.wake()
	return g.draw()
}

// answered ends the wishes up to a number. The host acts on none of them any more, so what one of them
// offered and it has not taken is the containers' again.
func (g *Governor) answered(number uint64) {
	if number > 0 {
		g.silent = false
	}
	if g.offered != 0 && number >= g.offer {
		g.offered = 0
	}
	if number >= g.number {
		g.asked = 0
	}
}

// Agree tells whether the host may take what the wish with this number leaves. If so, the containers do not
// get it until the wish is answered; if not, the host takes nothing by it, and they have it at once.
func (g *Governor) Agree(number uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.offered == 0 || number != g.offer {
		return false
	}
	if number == g.number && !g.hungry {
		// Once more, as the kernel may have taken some of what was free then.
		if err := g.draw(); err == nil && g.group.number("memory.max") >= g.group.number("memory.current") {
			g.taking = true
			return true
		}
		g.asked = 0
	}
	g.offered = 0
	if err := g.feed(); err != nil {
		g.cfg.Log.Error("the memory of the containers is not followed", "error", err)
	}
	return false
}
