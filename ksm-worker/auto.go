// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"time"

	"bulkhead/bus/procstat"
)

// The phases of auto.
const (
	phaseResting  = "resting"  // VMs are being started: their memory still changes, and the processors are theirs
	phaseSweeping = "sweeping" // passes over all memory as fast as the budget allows, while they gain
	phaseSettled  = "settled"  // slow passes, slower each time that they gain nothing
)

// The loop's constants. Where one is a trade it says between what.
const (
	// calm is how long no VM has started when a sweep begins; a row of starts is waited for no longer than impatience.
	calm       = 2 * time.Second
	impatience = 10 * time.Second
	// lookEvery is how often a sweep is corrected.
	lookEvery = time.Second
	// fastestPass keeps a page's two visits that far apart: what changes within it is not worth merging.
	fastestPass = 3 * time.Second
	// sweepPasses are needed after a start before a pass that gains nothing means anything: the one under way
	// began before, the first whole one notes what pages hold, the second merges what has stayed.
	sweepPasses = 3
	// wholePass is the one that has begun after the start.
	wholePass = 2
	// enough is the part of all pages that a pass must newly merge to be worth the next.
	enough = 0.005
	// The time of a settled pass, at first and at most. Under memory pressure the most is the first.
	firstPass   = 30 * time.Second
	longestPass = 10 * time.Minute
	// calmBudget is the part of the configured budget that is used while memory is plenty.
	calmBudget = 0.35
	// settledBudget bounds ksmd once settled, in percent of a core.
	settledBudget = 3.0
	// firstCost is what a look at a page is taken to cost until it has been measured.
	firstCost = 2 * time.Microsecond
	// sweepSleep and settledSleep are sleep_millisecs: short, so that a batch is short and ksmd is no long
	// neighbour on a processor; settled, few wake-ups count for more.
	sweepSleep   = 20
	settledSleep = 200
)

// auto is the closed loop. It sweeps as long as passes gain, at the rate that costs what may be spent,
// by what a page has been seen to cost; then it lets passes become rare, and rarer, and comes back when one gains or a VM starts.
type auto struct {
	budget float64 // most that ksmd may use of a core, in percent
	host   knobs   // the host's own settings: it is never merged slower than by them

	now        string
	firstStart time.Time // of the row of starts that is being waited for
	lastStart  time.Time
	passes     int64 // whole and part passes since the sweep began

	base     seen     // from which the cost of a page is counted
	lastPass struct { // at the last end of a full scan
		scans  int64
		merged int64
		at     time.Time
	}
	cost   time.Duration // of a look at a page
	rate   float64       // pages per second that are asked for while sweeping
	period time.Duration // of a settled pass
}

func newAuto(budget float64, host knobs, now time.Time) *auto {
	a := &auto{budget: budget, host: host, cost: firstCost}
	a.started(now)
	return a
}

func (a *auto) phase() string { return a.now }

func (a *auto) started(now time.Time) {
	if a.now != phaseResting {
		a.firstStart = now
	}
	a.lastStart = now
	a.period = 0
	if a.now != phaseSweeping { // a sweep under way goes on, and longer
		a.now = phaseResting
	}
	a.passes = 0
}

// stopped: what its pages were merged with may find others, and the kernel's notes of them are cleared by a pass.
func (a *auto) stopped(now time.Time) {
	if a.now == phaseSettled {
		a.period = firstPass
		a.lastPass.at = now
	}
}

func (a *auto) look(s seen) order {
	a.measure(s)
	switch a.now {
	case phaseResting:
		rested := s.at.Sub(a.lastStart) >= calm || s.at.Sub(a.firstStart) >= impatience || s.pressure >= 1
		if !rested {
			return a.order(s, order{again: min(calm-s.at.Sub(a.lastStart), impatience-s.at.Sub(a.firstStart))})
		}
		a.sweep(s)
	case phaseSweeping:
		a.endOfPass(s, func(gain int64) {
			a.passes++
			if a.passes >= sweepPasses && float64(gain) < enough*float64(a.pages(s)) {
				a.now, a.period = phaseSettled, firstPass
			}
		})
	case phaseSettled:
		a.endOfPass(s, func(gain int64) {
			if float64(gain) >= 2*enough*float64(a.pages(s)) {
				a.sweep(s)
				return
			}
			a.period = min(2*a.period, longestPass)
		})
		if s.pressure >= 1 {
			a.period = firstPass
		}
	}
	return a.order(s, order{again: lookEvery})
}

func (a *auto) sweep(s seen) {
	a.now, a.passes = phaseSweeping, 0
	a.lastPass.scans, a.lastPass.merged, a.lastPass.at = s.fullScans, s.merged, s.at
}

// endOfPass calls with what the passes that have ended since the last look gained.
func (a *auto) endOfPass(s seen, ended func(gain int64)) {
	n := s.fullScans - a.lastPass.scans
	if n <= 0 {
		return
	}
	gain := s.merged - a.lastPass.merged
	a.passes += n - 1
	a.lastPass.scans, a.lastPass.merged, a.lastPass.at = s.fullScans, s.merged, s.at
	ended(gain / n)
}

// measure learns what a page costs, from differences that are large enough to tell.
func (a *auto) measure(s seen) {
	pages, cpu := s.scanned-a.base.scanned, s.cpu-a.base.cpu
	if s.cpuKnown && !a.base.cpuKnown {
		a.base = s
	}
	if !s.cpuKnown || pages < 1000 || cpu < 5*procstat.Tick {
		return
	}
	a.base = s
	a.cost += (cpu/time.Duration(pages) - a.cost) / 4
	a.cost = max(a.cost, 100*time.Nanosecond)
}

// pages is how many there are to look at. After a whole pass the kernel knows them. What VMs have of no file is more, and many times as
// much where they are forked from one QEMU or continue from one template: memory that may not be merged is in it, too.
func (a *auto) pages(s seen) int64 {
	if a.now != phaseResting && a.passes >= wholePass && s.tracked > 0 {
		return s.tracked
	}
	return max(s.tracked, s.vmPages, 1)
}

// allowed is the share of a core that may be used now, in percent.
func (a *auto) allowed(s seen) float64 {
	return a.budget * (calmBudget + (1-calmBudget)*s.pressure)
}

// order is what the phase means in settings.
func (a *auto) order(s seen, o order) order {
	switch a.now {
	case phaseResting:
		if s.merged == 0 {
			return o // nothing to look after yet
		}
		return a.settled(s, o, longestPass)
	case phaseSweeping:
		o.budget = a.allowed(s)
		affordable := o.budget / 100 / a.cost.Seconds()
		a.rate = min(affordable, float64(a.pages(s))/fastestPass.Seconds())
		// ksmd scans, then sleeps: the time of the batch comes on top.
		batch := a.rate * (sweepSleep / 1000.0)
		if busy := a.rate * a.cost.Seconds(); busy < 0.95 {
			batch /= 1 - busy
		} else {
			batch *= 20
		}
		o.settings = knobs{
			knobPages: number(step(batch)), knobSleep: number(sweepSleep), knobAdvisor: advisorNone, knobRun: "1",
			// At first everything is looked at: what found no like so far may have one in the new VM. Then what never does is passed over.
			knobSmartScan: smart(a.passes >= sweepPasses),
		}
		return o
	default:
		o.again = 10 * time.Second
		return a.settled(s, o, a.period)
	}
}

func smart(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// settled asks for a pass in that time, by the kernel's advisor where it has one: it follows what there is to scan without us.
func (a *auto) settled(s seen, o order, period time.Duration) order {
	o.budget = settledBudget
	rate := min(float64(a.pages(s))/period.Seconds(), settledBudget/100/a.cost.Seconds())
	batch := step(rate * (settledSleep / 1000.0))
	if a.hostIsFaster(rate) {
		return order{again: o.again}
	}
	o.settings = knobs{
		knobPages: number(batch), knobSleep: number(settledSleep), knobSmartScan: "1", knobRun: "1",
		knobAdvisor: advisorScanTime, knobAdvisorFor: number(int64(period / time.Second)), knobAdvisorCPU: number(int64(settledBudget)),
		knobAdvisorMin: number(batch), knobAdvisorMax: number(8 * batch),
	}
	return o
}

// hostIsFaster says whether the host's own settings, with which others on it count, merge faster than this.
func (a *auto) hostIsFaster(rate float64) bool {
	if a.host[knobRun] != "1" {
		return false
	}
	pages, sleep := parse(a.host[knobPages]), parse(a.host[knobSleep])
	return pages/max(sleep, 1)*1000 >= rate
}

// step rounds to two digits, so that the settings do not change with every breath.
func step(v float64) int64 {
	n := max(int64(v), 1)
	unit := int64(1)
	for n/unit >= 100 {
		unit *= 10
	}
	return n / unit * unit
}
