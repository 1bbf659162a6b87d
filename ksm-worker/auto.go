// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"maps"
	"time"
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
	// enough is the part of the pages that can be merged at all which a pass must newly merge to be worth the next.
	enough = 0.005
	// The time of a settled pass, at first and at most. Under memory pressure the most is the first.
	firstPass = 30 * time.Second
	// Where merging costs more than it saves, it is the most at once.
	longestPass = 10 * time.Minute
	// calmBudget is the part of the configured budget that is used while memory is plenty.
	calmBudget = 0.35
	// settledBudget bounds ksmd once settled, in percent of a core, where the configured budget is more.
	settledBudget = 3.0
	// sweepSleep and settledSleep are sleep_millisecs: short, so that a batch is short and ksmd is no long
	// neighbour on a processor; settled, few wake-ups count for more.
	sweepSleep   = 20 * time.Millisecond
	settledSleep = 200 * time.Millisecond
)

// auto is the closed loop. It sweeps as long as passes gain, at the rate that costs what may be spent,
// by what a page has been seen to cost; then it lets passes become rare, and rarer, and comes back when one gains or a VM starts. The host's
// own settings, with which others on it count, are in force wherever they merge faster.
type auto struct {
	budget float64 // most that ksmd may use of a core, in percent

	now        string
	firstStart time.Time // of the row of starts that is being waited for
	lastStart  time.Time
	passes     int64 // whole and part passes since the sweep began

	lastPass struct { // at the last end of a full scan
		scans  int64
		merged int64
		profit int64
		at     time.Time
	}
	volatile int64 // pages that changed too fast, when all were looked at

	losing bool          // the kernel's notes of pages cost more memory than merging saves, and a pass has not changed that
	rate   float64       // pages per second that are asked for while sweeping
	period time.Duration // of a settled pass
}

func newAuto(budget float64, now time.Time) *auto {
	a := &auto{budget: budget}
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
	switch a.now {
	case phaseResting:
		rested := s.at.Sub(a.lastStart) >= calm || s.at.Sub(a.firstStart) >= impatience || s.pressure >= 1
		if !rested {
			return a.order(s, order{again: min(calm-s.at.Sub(a.lastStart), impatience-s.at.Sub(a.firstStart))})
		}
		a.sweep(s)
	case phaseSweeping:
		a.endOfPass(s, func(gain int64) {
			if a.passes < sweepPasses { // later ones count those among them that smart_scan passes over
				a.volatile = s.volatile
			}
			a.passes++
			switch {
			case a.passes < sweepPasses:
			case a.losing:
				a.now, a.period = phaseSettled, longestPass
			case float64(gain) < enough*a.calmPages(s):
				a.now, a.period = phaseSettled, firstPass
			}
		})
	case phaseSettled:
		a.endOfPass(s, func(gain int64) {
			switch {
			case a.losing:
				a.period = longestPass
			case float64(gain) >= 2*enough*a.calmPages(s):
				a.sweep(s)
			default:
				a.period = min(2*a.period, longestPass)
			}
		})
		if s.pressure >= 1 && !a.losing {
			a.period = firstPass
		}
	}
	return a.order(s, order{again: lookEvery})
}

func (a *auto) sweep(s seen) {
	a.now, a.passes = phaseSweeping, 0
	a.passEnded(s)
}

// passEnded keeps what the next end of a pass is compared with.
func (a *auto) passEnded(s seen) {
	a.lastPass.scans, a.lastPass.merged, a.lastPass.profit, a.lastPass.at = s.fullScans, s.merged, s.profit, s.at
}

// endOfPass calls with what the passes that have ended since the last look gained.
func (a *auto) endOfPass(s seen, ended func(gain int64)) {
	n := s.fullScans - a.lastPass.scans
	if n <= 0 {
		return
	}
	gain := s.merged - a.lastPass.merged
	a.passes += n - 1
	a.losing = s.profit < 0 && a.lastPass.profit < 0
	a.passEnded(s)
	ended(gain / n)
}

// pages is how many there are to look at. After a whole pass the kernel knows them. What VMs have of no file is more, and many times as
// much where they are forked from one QEMU or continue from one template: memory that may not be merged is in it, too.
func (a *auto) pages(s seen) int64 {
	if a.now != phaseResting && a.passes >= wholePass && s.tracked > 0 {
		return s.tracked
	}
	return max(s.tracked, s.vmPages, 1)
}

// calmPages are those that a pass can merge, without those that change too fast.
func (a *auto) calmPages(s seen) float64 { return float64(max(a.pages(s)-a.volatile, 1)) }

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
		a.rate = min(s.affordable(o.budget), float64(a.pages(s))/fastestPass.Seconds())
		if s.hostRate(a.pages(s)) >= a.rate {
			return a.hostSweep(s, o)
		}
		o.settings = knobs{
			knobPages: number(step(s.batch(a.rate, sweepSleep))), knobSleep: number(sweepSleep.Milliseconds()), knobAdvisor: advisorNone, knobRun: "1",
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

// hostSweep leaves the pace to the host, whose own is the faster. Only that nothing is passed over at first is asked for.
func (a *auto) hostSweep(s seen, o order) order {
	o.budget = 0 // it is the host's
	if a.passes < sweepPasses {
		o.settings = maps.Clone(s.host)
		o.settings[knobSmartScan] = smart(false)
	}
	return o
}

// settled asks for a pass in that time, by the kernel's advisor where it has one: it follows what there is to scan without us.
func (a *auto) settled(s seen, o order, period time.Duration) order {
	o.budget = min(settledBudget, a.budget)
	rate := min(float64(a.pages(s))/period.Seconds(), s.affordable(o.budget))
	if s.hostRate(a.pages(s)) >= rate {
		return order{again: o.again}
	}
	batch := step(rate * settledSleep.Seconds())
	o.settings = knobs{
		knobPages: number(batch), knobSleep: number(settledSleep.Milliseconds()), knobSmartScan: "1", knobRun: "1",
		knobAdvisor: advisorScanTime, knobAdvisorFor: number(int64(period / time.Second)), knobAdvisorCPU: number(int64(o.budget)),
		knobAdvisorMin: number(batch), knobAdvisorMax: number(8 * batch),
	}
	return o
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
