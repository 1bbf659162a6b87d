// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import "time"

const (
	// worthwhile is the least by which raising the border alone helps.
	worthwhile = 4 * mib
	// spare is what may be unused in a machine that could be smaller.
	spare = 24 * mib
)

// reached is called when a charge has met the border.
func (g *Governor) reached() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.met, g.calm, g.tick, g.hungry = time.Now(), 0, tick, true
	if err := g.feed(); err != nil {
		g.cfg.Log.Error("the memory of the containers is not followed", "error", err)
	}
}

// feed lets the charges that wait at the border go on, or asks the host for what they need. Who waits
// says so once only: what does not help is followed by more.
func (g *Governor) feed() error {
	before := g.group.number("memory.max")
	if err := g.draw(); err != nil {
		return err
	}
	total, _, err := g.meminfo()
	if err != nil {
		return err
	}
	has := g.machine.Has
	if g.taking { // some of that may be gone
		has = g.online(total)
	}
	switch {
	case g.group.number("memory.max") >= before+worthwhile, !g.refused.IsZero():
		g.hungry = false
	case has >= g.machine.Limit && g.offered == 0:
		g.hungry = g.online(total) < has // there is no more, but this has not come yet
	case g.asked == 0 || g.asked < has || g.number == g.offer: // else it is asked again until it is answered
		// In steps of a half: few of them to any size, and no more than that unused.
		step := max(blocks(has/2), Block)
		g.ask(max(min(has+step, g.machine.Base+blocks(g.machine.Limit-g.machine.Base)), has))
	}
	return nil
}

// comes tells whether charges wait at the border for memory that the host has added and the kernel does not use yet,
// which nobody tells of.
func (g *Governor) comes() bool { return g.hungry && g.asked == 0 && time.Since(g.met) < waitTime }

func (g *Governor) ask(bytes uint64) {
	g.asked, g.since = bytes, time.Now()
	g.number++
	g.cfg.Ask(bytes, g.number)
	g.wake()
}

// look repeats what was not answered, ends a refusal, and finds what could be
// given back.
func (g *Governor) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget()
	if g.asked != 0 {
		if g.asked > g.machine.Has && !g.silent && time.Since(g.since) >= waitTime {
			// Each further charge would wait as long. They get along with what there is, as at any limit, until the host is back.
			g.silent = true
			g.redraw()
		}
		g.cfg.Ask(g.asked, g.number)
		return
	}
	if !g.refused.IsZero() {
		if time.Since(g.refused) >= g.hold {
			g.refused = time.Time{}
			g.redraw()
		}
		return
	}
	if g.comes() {
		if err := g.feed(); err != nil {
			g.cfg.Log.Error("the memory of the containers is not followed", "error", err)
		}
		return
	}
	if time.Since(g.met) >= cacheRest {
		g.trimCache(false)
	}
	g.shrink(false)
}

// forget takes back a wish for more when nobody can be waiting at the border any more.
func (g *Governor) forget() {
	if g.offered == 0 && g.asked > g.machine.Has && g.group.number("memory.current")+spare < g.group.number("memory.max") {
		g.asked, g.hungry = 0, false
		if g.silent { // who meets the border next may wait again
			g.silent = false
			g.redraw()
		}
	}
}

// shrink asks for less when much has been unused for a while, or now.
func (g *Governor) shrink(now bool) {
	base := g.machine.Base
	if g.asked != 0 || g.offered != 0 || g.machine.Has <= base {
		return
	}
	total, free, err := g.meminfo()
	if err != nil {
		g.cfg.Log.Error("the guest's memory is not known", "error", err)
		return
	}
	used := total - min(free, total)
	unseen := g.machine.Has - min(total, g.machine.Has) // the kernel's from its start
	need := unseen + used + headroom + 2*reserve(total) + spare
	if !now {
		need += used / 8
	}
	want := base
	if need > base {
		want += blocks(need - base)
	}
	if want >= g.machine.Has {
		g.calm = 0
		return
	}
	if g.calm++; g.calm < calmTicks && !now {
		return
	}
	g.calm = 0
	// What the kernel cannot let go is asked for less and less often.
	g.tick = min(2*g.tick, maxTick)
	// The border comes first: what is asked back may not be taken meanwhile.
	g.offered, g.offer = want, g.number+1
	if err := g.draw(); err != nil {
		g.cfg.Log.Error("the memory of the containers is not followed", "error", err)
		g.offered = 0
		return
	}
	g.ask(want)
}

func blocks(bytes uint64) uint64 { return (bytes + Block - 1) / Block * Block }
