// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// life is an hour of a host: VMs come in bursts and one by one, and go.
func life(m *model, came func(v *modelVM), went func(v *modelVM), pass func(d time.Duration)) {
	var there []*modelVM
	pid := 1000
	start := func(n int, gap time.Duration) {
		for range n {
			pid++
			v := m.start(pid, 1500)
			there = append(there, v)
			came(v)
			pass(gap)
		}
	}
	stop := func(n int) {
		for range n {
			v := there[0]
			there = there[1:]
			m.stop(v)
			went(v)
		}
	}
	start(10, 500*time.Millisecond) // a burst
	pass(10 * time.Minute)
	start(1, time.Second)
	pass(5 * time.Minute)
	stop(4)
	pass(5 * time.Minute)
	start(8, 3*time.Second) // a slow row
	pass(15 * time.Minute)
	for range 10 { // one leaves, one comes
		stop(1)
		start(1, time.Minute)
	}
	pass(14 * time.Minute)
}

// outcome is what a way of steering made of a host's life.
type outcome struct {
	merged int64         // at the end, in pages
	area   float64       // pages times seconds
	cpu    time.Duration // of ksmd
}

// everyLook is how often the model is looked at, at least.
const everyLook = 5 * time.Second

// fullSpeed is permanent scanning by as much as the processor gives.
func fullSpeed(t *testing.T) outcome {
	m := newModel(t, knobs{knobRun: "1", knobPages: "100000", knobSleep: "0", knobSmartScan: "0"})
	var o outcome
	life(m, func(*modelVM) {}, func(*modelVM) {}, func(d time.Duration) {
		for end := m.at.Add(d); m.at.Before(end); {
			before := m.at
			m.run(min(everyLook, end.Sub(m.at)))
			o.area += float64(m.merged()) * m.at.Sub(before).Seconds()
		}
	})
	o.merged, o.cpu = m.merged(), m.cpu
	return o
}

// steered is the same life under a mode of the controller.
func steered(t *testing.T, mode string) (outcome, *model, *controller) {
	m := newModel(t, nil)
	c, err := newController(kernel{m.sysfs}, &proc{dir: m.proc}, t.TempDir(), mode, 60, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	c.now = func() time.Time { return m.at }
	var o outcome
	next := m.at
	name := func(v *modelVM) string { return fmt.Sprint("vm-", v.pid) }
	life(m,
		func(v *modelVM) { c.come(vm{name(v), v.pid, uint64(v.pid)}); next = m.at },
		func(v *modelVM) { c.gone(name(v)); next = m.at },
		func(d time.Duration) {
			for end := m.at.Add(d); m.at.Before(end); {
				if !m.at.Before(next) {
					next = m.at.Add(c.step())
				}
				before := m.at
				m.run(min(everyLook, end.Sub(m.at), max(time.Millisecond, next.Sub(m.at))))
				o.area += float64(m.merged()) * m.at.Sub(before).Seconds()
			}
		})
	o.merged, o.cpu = m.merged(), m.cpu
	if c.problem != "" {
		t.Errorf("mode %s: %s", mode, c.problem)
	}
	return o, m, c
}

// TestAutoMergesWhatFullSpeedMergesForAThirdOfItsWork, over an hour of VMs that come and go: the pages that are merged at the end, and
// those that were merged on the way.
func TestAutoMergesWhatFullSpeedMergesForAThirdOfItsWork(t *testing.T) {
	t.Parallel()
	full := fullSpeed(t)
	auto, m, c := steered(t, modeAuto)
	classic, _, _ := steered(t, modeThrottle)
	for _, o := range []struct {
		name string
		outcome
	}{{"full speed", full}, {"auto", auto}, {"throttle", classic}} {
		t.Logf("%-10s %6d pages merged at the end, %5.1f %% of full speed over the hour, ksmd %4.0f s of processor time",
			o.name, o.merged, 100*o.area/full.area, o.cpu.Seconds())
	}
	if float64(auto.merged) < 0.95*float64(full.merged) {
		t.Errorf("auto merged %d pages in the end, full speed %d", auto.merged, full.merged)
	}
	if auto.area < 0.95*full.area {
		t.Errorf("auto merged %.0f %% of what full speed had merged on the way", 100*auto.area/full.area)
	}
	if auto.cpu > full.cpu/3 {
		t.Errorf("ksmd used %s under auto, %s at full speed", auto.cpu, full.cpu)
	}
	if phase := c.phaseNow(); phase != phaseSettled {
		t.Errorf("minutes after the last VM came, auto is %s", phase)
	}
	before := m.cpu
	m.run(30 * time.Second)
	if used := (m.cpu - before).Seconds() / 30; used > 0.05 {
		t.Errorf("settled, ksmd uses %.0f %% of a core", 100*used)
	}
}

// TestABurstOfForkedVMsSettlesWithinAMinute: fifty, four a second, of which most of what they have of no file is the
// memory of the process that they were forked from, and none of it may be merged.
func TestABurstOfForkedVMsSettlesWithinAMinute(t *testing.T) {
	t.Parallel()
	const vms, pages, others = 50, 150, 8
	m := newModel(t, nil)
	c, err := newController(kernel{m.sysfs}, &proc{dir: m.proc}, t.TempDir(), modeAuto, 60, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	c.now = func() time.Time { return m.at }
	next := m.at
	pass := func(until func() bool) {
		for !until() {
			if !m.at.Before(next) {
				next = m.at.Add(c.step())
			}
			m.run(min(time.Second, max(time.Millisecond, next.Sub(m.at))))
		}
	}
	for i := range vms {
		v := m.start(1000+i, pages)
		m.write(m.proc, fmt.Sprint(v.pid, "/status"), fmt.Sprintf("RssAnon: %d kB", (1+others)*pages*int(pageSize>>10)))
		c.come(vm{fmt.Sprint("vm-", v.pid), v.pid, uint64(v.pid)})
		next = m.at
		end := m.at.Add(250 * time.Millisecond)
		pass(func() bool { return !m.at.Before(end) })
	}
	last, used := m.at, m.cpu
	pass(func() bool { return c.phaseNow() == phaseSettled || m.at.Sub(last) > time.Hour })
	settled, merged := m.at.Sub(last), m.merged()
	t.Logf("settled %s after the last start, for %s of processor time, with %d pages merged", settled, m.cpu-used, merged)
	if settled > time.Minute {
		t.Errorf("it has settled %s after the last start", settled)
	}
	began := m.at
	used = m.cpu
	pass(func() bool { return m.at.Sub(began) >= 10*time.Minute })
	share := (m.cpu - used).Seconds() / m.at.Sub(began).Seconds()
	t.Logf("then ksmd uses %.1f %% of a core, and %d pages are merged", 100*share, m.merged())
	if share > 0.05 {
		t.Errorf("settled, ksmd uses %.1f %% of a core", 100*share)
	}
	if float64(merged) < 0.95*float64(m.merged()) {
		t.Errorf("%d pages are merged when it has settled, and %d in the end", merged, m.merged())
	}
}
