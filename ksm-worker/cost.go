// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"time"

	"bulkhead/bus/procstat"
)

// meter learns what a look at a page costs ksmd, from differences that are large enough to tell.
type meter struct {
	base seen // from which it is counted
	cost time.Duration
}

// firstCost is what a look at a page is taken to cost until it has been measured.
const firstCost = 2 * time.Microsecond

func (m *meter) measure(s seen) {
	pages, cpu := s.scanned-m.base.scanned, s.cpu-m.base.cpu
	if s.cpuKnown && !m.base.cpuKnown {
		m.base = s
		return
	}
	if !s.cpuKnown || pages < 1000 || cpu < 5*procstat.Tick {
		return
	}
	m.base = s
	m.cost += (cpu/time.Duration(pages) - m.cost) / 4
	m.cost = max(m.cost, 100*time.Nanosecond)
}

// affordable is how many pages a second may be looked at for that many percent of a core.
func (s seen) affordable(percent float64) float64 { return percent / 100 / s.cost.Seconds() }

// batch is how many pages are to be looked at before each sleep for that many a second: ksmd scans, then sleeps, so
// the time of the batch comes on top.
func (s seen) batch(rate float64, sleep time.Duration) float64 {
	batch := rate * sleep.Seconds()
	if busy := rate * s.cost.Seconds(); busy < 0.95 {
		return batch / (1 - busy)
	}
	return batch * 20
}

// hostRate is how many pages a second are looked at by the host's own settings, of so many.
func (s seen) hostRate(pages int64) float64 {
	batch := parse(s.host[knobPages])
	if s.host[knobRun] != "1" || batch <= 0 {
		return 0
	}
	rate := batch / (parse(s.host[knobSleep])/1000 + batch*s.cost.Seconds())
	if s.host[knobAdvisor] == advisorScanTime { // which raises the batch with what there is to scan
		advised := float64(pages) / max(parse(s.host[knobAdvisorFor]), 1)
		rate = max(rate, min(advised, s.affordable(parse(s.host[knobAdvisorCPU]))))
	}
	return rate
}
