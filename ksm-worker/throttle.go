// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import "time"

// gear is one of the classic throttler's steps, with the parameters of Intel Clear
// Containers' ksm-throttler: a part of the host's anonymous pages at a time.
type gear struct {
	name  string
	part  int64 // of the anonymous pages, scanned before each sleep
	sleep int64 // milliseconds
	lasts time.Duration
}

var gears = []gear{
	{"aggressive", 10, 1, 30 * time.Second},
	{"standard", 100, 10, 120 * time.Second},
	{"slow", 500, 100, 120 * time.Second},
}

// initialGear is that of the host's own settings, behind the last.
const initialGear = "initial"

// throttle is the classic policy: fast after a VM has come or gone, slower by the clock. It
// looks at nothing else.
type throttle struct {
	at       int // in gears; len(gears) is initial
	since    time.Time
	settings knobs // of this gear, computed as it began
}

func newThrottle() *throttle { return &throttle{at: len(gears)} }

func (t *throttle) started(now time.Time) { t.shift(0, now) }
func (t *throttle) stopped(now time.Time) { t.shift(0, now) }

func (t *throttle) shift(to int, now time.Time) { t.at, t.since, t.settings = to, now, nil }

func (t *throttle) phase() string {
	if t.at == len(gears) {
		return initialGear
	}
	return gears[t.at].name
}

func (t *throttle) look(s seen) order {
	for t.at < len(gears) && s.at.Sub(t.since) >= gears[t.at].lasts {
		t.shift(t.at+1, t.since.Add(gears[t.at].lasts))
	}
	if t.at == len(gears) {
		return order{again: time.Minute}
	}
	g := gears[t.at]
	if t.settings == nil {
		t.settings = knobs{
			knobPages: number(max(1, s.anonPages/g.part)), knobSleep: number(g.sleep), knobAdvisor: advisorNone, knobRun: "1",
		}
	}
	return order{settings: t.settings, again: max(time.Millisecond, t.since.Add(g.lasts).Sub(s.at))}
}
