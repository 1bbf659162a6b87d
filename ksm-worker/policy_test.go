// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
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
	a := newAuto(60, knobs{knobRun: "0"}, at)
	s := seen{at: at, vmPages: 1_000_000, cpuKnown: true}
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
	s.scanned, s.cpu, s.at = 100_000, 2*time.Second, s.at.Add(time.Second)
	a.look(s)
	if dear := a.look(s); parse(dear.settings[knobPages]) > parse(short.settings[knobPages])/2 {
		t.Errorf("a page costs %s: %v", a.cost, dear)
	}

	// A row of starts is not waited for without end.
	a = newAuto(60, knobs{}, at)
	for d := time.Duration(0); d < impatience; d += time.Second {
		a.started(at.Add(d))
		if a.look(seen{at: at.Add(d), vmPages: 1000}); a.phase() != phaseResting {
			t.Errorf("%s after the first of a row: %s", d, a.phase())
		}
	}
	if a.look(seen{at: at.Add(impatience), vmPages: 1000}); a.phase() != phaseSweeping {
		t.Errorf("a row of starts keeps it %s", a.phase())
	}
}

// TestAutoIsNeverSlowerThanTheHost: others may count on the host's own settings.
func TestAutoIsNeverSlowerThanTheHost(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host  knobs
		leave bool
	}{
		{knobs{knobRun: "0", knobPages: "10000", knobSleep: "20"}, false},
		{knobs{knobRun: "1", knobPages: "10000", knobSleep: "20"}, true},
		{knobs{knobRun: "1", knobPages: "1", knobSleep: "1000"}, false},
	} {
		a := newAuto(60, c.host, time.Unix(1e9, 0))
		a.now, a.period = phaseSettled, firstPass
		o := a.look(seen{at: time.Unix(1e9, 0), vmPages: 100_000, tracked: 100_000})
		if (o.settings == nil) != c.leave {
			t.Errorf("settled on a host with %v: %v", c.host, o.settings)
		}
	}
}
