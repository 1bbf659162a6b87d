// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"maps"
	"testing"
	"time"
)

func TestThrottleHasTheClassicGearsAndTimes(t *testing.T) {
	t.Parallel()
	began := time.Unix(1e9, 0)
	throttle := newThrottle()
	throttle.started(began)
	anon := int64(1_000_000)
	for _, c := range []struct {
		at           time.Duration
		anon         int64 // pages of the host then; only what a gear began with counts
		phase        string
		pages, sleep string
		again        time.Duration
	}{
		{0, anon, "aggressive", "100000", "1", 30 * time.Second},
		{29 * time.Second, 7, "aggressive", "100000", "1", time.Second},
		{30 * time.Second, anon, "standard", "10000", "10", 120 * time.Second},
		{150 * time.Second, anon, "slow", "2000", "100", 120 * time.Second},
		{269 * time.Second, anon, "slow", "2000", "100", time.Second},
		{270 * time.Second, anon, "initial", "", "", time.Minute},
		{400 * time.Second, anon, "initial", "", "", time.Minute},
	} {
		o := throttle.look(seen{at: began.Add(c.at), anonPages: c.anon})
		if throttle.phase() != c.phase || o.settings[knobPages] != c.pages || o.settings[knobSleep] != c.sleep || o.again != c.again {
			t.Errorf("after %s: %s, %v, again in %s", c.at, throttle.phase(), o.settings, o.again)
		}
	}
	for name, kick := range map[string]func(time.Time){"start": throttle.started, "stop": throttle.stopped} {
		at := began.Add(time.Hour)
		kick(at)
		if throttle.look(seen{at: at, anonPages: anon}); throttle.phase() != "aggressive" {
			t.Errorf("after a %s it is %s", name, throttle.phase())
		}
		throttle.look(seen{at: at.Add(time.Hour), anonPages: anon})
	}
}

func TestAutoWaitsForStartsAndSpendsWhatMemoryIsWorth(t *testing.T) {
	t.Parallel()
	at := time.Unix(1e9, 0)
	a := newAuto(60, at)
	s := seen{at: at, vmPages: 1_000_000, cost: firstCost}
	if o := a.look(s); a.phase() != phaseResting || o.settings != nil || o.again <= 0 || o.again > calm {
		t.Errorf("as the first VM comes: %s, %v", a.phase(), o)
	}
	s.at = at.Add(calm)
	calmOrder := a.look(s)
	if a.phase() != phaseSweeping || calmOrder.settings[knobRun] != "1" || calmOrder.settings[knobSmartScan] != "0" {
		t.Errorf("after a calm moment: %s, %v", a.phase(), calmOrder)
	}
	s.pressure = 1
	short := a.look(s)
	if parse(short.settings[knobPages]) < 2*parse(calmOrder.settings[knobPages]) || short.budget != 60 {
		t.Errorf("where memory is short %v, else %v", short, calmOrder)
	}
	// A page that costs ten times as much is looked at less often.
	s.cost, s.at = 10*firstCost, s.at.Add(time.Second)
	if dear := a.look(s); parse(dear.settings[knobPages]) > parse(short.settings[knobPages])/2 {
		t.Errorf("a page costs %s: %v", s.cost, dear)
	}

	// A row of starts is not waited for without end.
	a = newAuto(60, at)
	for d := time.Duration(0); d < impatience; d += time.Second {
		a.started(at.Add(d))
		if a.look(seen{at: at.Add(d), vmPages: 1000, cost: firstCost}); a.phase() != phaseResting {
			t.Errorf("%s after the first of a row: %s", d, a.phase())
		}
	}
	if a.look(seen{at: at.Add(impatience), vmPages: 1000, cost: firstCost}); a.phase() != phaseSweeping {
		t.Errorf("a row of starts keeps it %s", a.phase())
	}
}

// TestAutoIsNeverSlowerThanTheHost: others may count on the host's own settings.
func TestAutoIsNeverSlowerThanTheHost(t *testing.T) {
	t.Parallel()
	const pages = 1_000_000
	for _, c := range []struct {
		name           string
		host           knobs
		sweep, settled bool // whether the host is the faster
	}{
		{"that does not merge", knobs{knobRun: "0", knobPages: "10000", knobSleep: "20", knobSmartScan: "1"}, false, false},
		{"that merges fast", knobs{knobRun: "1", knobPages: "10000", knobSleep: "20", knobSmartScan: "1"}, true, true},
		{"without a pause", knobs{knobRun: "1", knobPages: "100", knobSleep: "0", knobSmartScan: "1"}, true, true},
		{"that merges slowly", knobs{knobRun: "1", knobPages: "1", knobSleep: "1000", knobSmartScan: "1"}, false, false},
		{"as the kernel comes, but on", knobs{knobRun: "1", knobPages: "100", knobSleep: "20", knobSmartScan: "1"}, false, false},
		{"between sweep and settled", knobs{knobRun: "1", knobPages: "1000", knobSleep: "20", knobSmartScan: "1"}, false, true},
		{"with an advisor", knobs{knobRun: "1", knobPages: "1", knobSleep: "20", knobSmartScan: "1", knobAdvisor: advisorScanTime, knobAdvisorFor: "10", knobAdvisorCPU: "70"}, false, true},
		{"with an advisor in haste", knobs{knobRun: "1", knobPages: "1", knobSleep: "20", knobSmartScan: "1", knobAdvisor: advisorScanTime, knobAdvisorFor: "1", knobAdvisorCPU: "70"}, true, true},
	} {
		at := time.Unix(1e9, 0)
		s := seen{at: at.Add(calm), vmPages: pages, tracked: pages, merged: 10, cost: firstCost, host: c.host}
		a := newAuto(60, at)
		o := a.look(s)
		if a.phase() != phaseSweeping || o.settings[knobSmartScan] != "0" {
			t.Errorf("a host %s: %s with %v", c.name, a.phase(), o.settings)
		}
		own := maps.Clone(c.host)
		own[knobSmartScan] = "0"
		if maps.Equal(o.settings, own) != c.sweep || (o.budget == 0) != c.sweep {
			t.Errorf("a host %s, sweeping with %v: %v", c.name, c.host, o)
		}
		// When nothing is to be looked at that is passed over, all are the host's.
		a.passes = sweepPasses
		if o := a.look(s); (o.settings == nil) != c.sweep {
			t.Errorf("a host %s, sweeping on with %v: %v", c.name, c.host, o)
		}
		a.now, a.period = phaseSettled, firstPass
		if o := a.look(s); (o.settings == nil) != c.settled {
			t.Errorf("a host %s, settled with %v: %v", c.name, c.host, o)
		}
	}
}

// TestTheBudgetBoundsASettledLoopToo, where it is less than what is used of a greater one.
func TestTheBudgetBoundsASettledLoopToo(t *testing.T) {
	t.Parallel()
	for budget, most := range map[float64]float64{1: 1, 2: 2, 60: settledBudget} {
		s := seen{at: time.Unix(1e9, 0), tracked: 100_000_000, cost: firstCost}
		a := newAuto(budget, s.at)
		a.now, a.period = phaseSettled, firstPass
		o := a.look(s)
		used := 100 * parse(o.settings[knobPages]) / settledSleep.Seconds() * s.cost.Seconds()
		if o.budget != most || parse(o.settings[knobAdvisorCPU]) != most || used > most || used < most*0.8 {
			t.Errorf("max_cpu_percent %v: ksmd may use %v, and is asked for %.2f by %v", budget, o.budget, used, o.settings)
		}
	}
}

// TestMergingThatCostsMoreThanItSavesIsRareAtOnce, whatever else speaks for it, until it pays.
func TestMergingThatCostsMoreThanItSavesIsRareAtOnce(t *testing.T) {
	t.Parallel()
	s := seen{at: time.Unix(1e9, 0), tracked: 1_000_000, cost: firstCost, pressure: 1}
	a := newAuto(60, s.at)
	s.at = s.at.Add(impatience)
	a.look(s)
	pass := func(gain, profit int64) {
		s.at, s.fullScans, s.merged, s.profit = s.at.Add(time.Second), s.fullScans+1, s.merged+gain, profit
		a.look(s)
	}
	for range sweepPasses - 1 {
		if pass(20_000, -1); a.phase() != phaseSweeping {
			t.Fatalf("before two whole passes it is %s", a.phase())
		}
	}
	for range 5 {
		if pass(20_000, -1); a.phase() != phaseSettled || a.period != longestPass {
			t.Errorf("where merging never pays, auto is %s with passes of %s", a.phase(), a.period)
		}
	}
	if pass(100, 1); a.phase() != phaseSettled || a.period != firstPass {
		t.Errorf("where it begins to pay and memory is scarce, auto is %s with passes of %s", a.phase(), a.period)
	}
	if pass(20_000, 1); a.phase() != phaseSweeping {
		t.Errorf("where it pays, auto is %s", a.phase())
	}
	for range sweepPasses {
		pass(20_000, 1)
	}
	if pass(20_000, -1); a.phase() != phaseSweeping {
		t.Errorf("after one pass at a loss auto is %s", a.phase())
	}
}

// TestPagesThatChangeTooFastDoNotCountForWhatAPassMustGain.
func TestPagesThatChangeTooFastDoNotCountForWhatAPassMustGain(t *testing.T) {
	t.Parallel()
	for volatile, phase := range map[int64]string{0: phaseSettled, 900_000: phaseSweeping, 1_000_000: phaseSweeping} {
		s := seen{at: time.Unix(1e9, 0), tracked: 1_000_000, volatile: volatile, cost: firstCost}
		a := newAuto(60, s.at)
		s.at = s.at.Add(impatience)
		a.look(s)
		pass := func(gain int64) {
			s.at, s.fullScans, s.merged = s.at.Add(time.Second), s.fullScans+1, s.merged+gain
			a.look(s)
		}
		for range sweepPasses {
			pass(10_000)
		}
		s.volatile = 999_000 // the kernel counts what smart_scan passes over from now on among them
		if pass(1000); a.phase() != phase {
			t.Errorf("a gain of 1000 of 1000000 pages, %d of them volatile: %s", volatile, a.phase())
		}
	}
}

// TestWhatAPageCostsIsMeasured, by differences that can be told from the clock's.
func TestWhatAPageCostsIsMeasured(t *testing.T) {
	t.Parallel()
	m := meter{cost: firstCost}
	s := seen{scanned: 5_000_000, cpu: time.Hour, cpuKnown: true}
	m.measure(s)
	s.scanned, s.cpu = s.scanned+100, s.cpu+time.Second
	if m.measure(s); m.cost != firstCost {
		t.Errorf("too little to tell, and a page costs %s", m.cost)
	}
	for range 20 {
		s.scanned, s.cpu = s.scanned+100_000, s.cpu+2*time.Second
		m.measure(s)
	}
	if m.cost < 19*time.Microsecond || m.cost > 21*time.Microsecond {
		t.Errorf("2 s for 100000 pages, and one costs %s", m.cost)
	}
	s.cost = m.cost
	for _, percent := range []float64{1, 35, 90} {
		batch := s.batch(s.affordable(percent), sweepSleep)
		busy := batch * s.cost.Seconds()
		if share := 100 * busy / (busy + sweepSleep.Seconds()); share < percent*0.95 || share > percent*1.05 {
			t.Errorf("for %v %% of a core, ksmd is busy for %.1f %%", percent, share)
		}
	}
}
