// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	busv1 "bulkhead/proto/bus/v1"
)

// steward is a controller on a model, in its time.
type steward struct {
	*controller
	m    *model
	next time.Time
	told []string
}

func newSteward(t *testing.T, host knobs, mode string, budget int) *steward {
	t.Helper()
	m := newModel(t, host)
	c, err := newController(kernel{m.sysfs}, &proc{dir: m.proc}, t.TempDir(), mode, budget, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	s := &steward{controller: c, m: m, next: m.at}
	c.now = func() time.Time { return m.at }
	c.tell = func(event string, _ map[string]string) { s.told = append(s.told, event) }
	return s
}

func (s *steward) start(pid, pages int) *modelVM {
	v := s.m.start(pid, pages)
	s.come(vm{fmt.Sprint("vm-", pid), pid, uint64(pid)})
	s.next = s.m.at
	return v
}

func (s *steward) stop(v *modelVM) {
	s.m.stop(v)
	s.gone(fmt.Sprint("vm-", v.pid))
	s.next = s.m.at
}

// live lets time pass until that is so, an hour at most.
func (s *steward) live(until func() bool) {
	for end := s.m.at.Add(time.Hour); !until() && s.m.at.Before(end); {
		if !s.m.at.Before(s.next) {
			s.next = s.m.at.Add(s.step())
		}
		s.m.run(min(time.Second, max(time.Millisecond, s.next.Sub(s.m.at))))
	}
}

func (s *steward) liveFor(d time.Duration) {
	end := s.m.at.Add(d)
	s.live(func() bool { return !s.m.at.Before(end) })
}

// TestMergingThatNeverPaysCostsLittle: VMs that have nothing in common, and memory is scarce.
func TestMergingThatNeverPaysCostsLittle(t *testing.T) {
	t.Parallel()
	s := newSteward(t, nil, modeAuto, 60)
	s.m.write(s.m.proc, "meminfo", "MemTotal: 25000000 kB\nMemAvailable: 1000000 kB\nAnonPages: 20000000 kB\n")
	for pid := range 4 {
		for i, v := 0, s.start(1000+pid, 1500); i < len(v.pages); i++ {
			s.m.next++
			v.pages[i] = modelPage{content: s.m.next, volatile: max(0, v.pages[i].volatile), changed: s.m.at}
		}
	}
	s.liveFor(time.Hour)
	if s.last.seen.profit >= 0 || s.last.seen.volatile == 0 {
		t.Fatalf("the kernel says that it pays: %+v", s.last.seen)
	}
	// The three of the sweep, perhaps another to see that it stays so, and six of ten minutes.
	if most := int64(sweepPasses + 1 + time.Hour/longestPass); s.m.scans > most || s.phaseNow() != phaseSettled {
		t.Errorf("in an hour ksmd made %d passes over memory in which nothing is alike; now it is %s", s.m.scans, s.phaseNow())
	}
}

// TestALastPassKeepsWithinTheBudget, by what a page has been seen to cost.
func TestALastPassKeepsWithinTheBudget(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{modeAuto, modeThrottle} {
		for _, budget := range []int{2, 10, 50} {
			s := newSteward(t, nil, mode, budget)
			s.m.start(999, 3000) // another program's, so that there is something to look at
			v := s.start(1000, 1500)
			s.liveFor(2 * time.Minute)
			s.stop(v)
			s.step()
			began, used := s.m.at, s.m.cpu
			s.live(func() bool { return s.phaseNow() != phaseClearing })
			took := s.m.at.Sub(began)
			if share := 100 * (s.m.cpu - used).Seconds() / took.Seconds(); took < time.Second || share > float64(budget)*1.1 {
				t.Errorf("mode %s, max_cpu_percent %d: for %s after the last VM ksmd used %.1f %% of a core", mode, budget, took, share)
			}
			if took > longestClear+time.Second || s.governor.steering() {
				t.Errorf("mode %s, max_cpu_percent %d: %s after the last VM it is %s", mode, budget, took, s.phaseNow())
			}
		}
	}
}

// TestYieldingInTheLastPassIsTold, as at any other time.
func TestYieldingInTheLastPassIsTold(t *testing.T) {
	t.Parallel()
	s := newSteward(t, nil, modeAuto, 60)
	s.m.start(999, 3000)
	v := s.start(1000, 1500)
	s.liveFor(time.Minute)
	s.stop(v)
	if s.step(); s.phaseNow() != phaseClearing {
		t.Fatalf("after the last VM it is %s", s.phaseNow())
	}
	s.m.write(s.m.sysfs, knobPages, "777")
	s.step()
	if why := "pages_to_scan is 777"; s.phaseNow() != phaseYielded || !strings.Contains(s.problem, why) || !strings.Contains(s.detail(), why) {
		t.Errorf("somebody else has changed a setting, and it is %s: %q, said is %q", s.phaseNow(), s.detail(), s.problem)
	}
	if !slices.Contains(s.told, "yielded") || slices.Contains(s.told, "restored") {
		t.Errorf("told is %v", s.told)
	}
}

// TestAHostThatMergesFastKeepsItsPace, from the first VM to the last.
func TestAHostThatMergesFastKeepsItsPace(t *testing.T) {
	t.Parallel()
	own := knobs{knobRun: "1", knobPages: "2000", knobSleep: "20", knobSmartScan: "1"}
	s := newSteward(t, own, modeAuto, 60)
	looked := false
	check := func() bool {
		for name, value := range mustKnobs(t, s.m.sysfs) {
			switch {
			case name == knobSmartScan && value == "0" && s.phaseNow() == phaseSweeping:
				looked = true
			case own[name] != "" && own[name] != value:
				t.Errorf("%s: %s is %s, the host's own %s", s.phaseNow(), name, value, own[name])
			}
		}
		return false
	}
	end := s.m.at.Add(5 * time.Minute)
	v := s.start(1000, 1500)
	w := s.start(1001, 1500)
	s.live(func() bool { return check() || !s.m.at.Before(end) })
	if !looked || s.phaseNow() != phaseSettled {
		t.Errorf("it is %s, and has looked at everything: %v", s.phaseNow(), looked)
	}
	s.stop(v)
	s.stop(w)
	end = s.m.at.Add(time.Minute)
	s.live(func() bool { return check() || !s.m.at.Before(end) })
}

// TestOffAndObserveCountAlike and steer nothing.
func TestOffAndObserveCountAlike(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{modeOff, modeObserve} {
		s := newSteward(t, knobs{knobRun: "1"}, mode, 60)
		own := mustKnobs(t, s.m.sysfs)
		s.start(1000, 300)
		s.start(1001, 300)
		s.liveFor(10 * time.Minute)
		st, err := s.status(&busv1.ServiceStatus{}, "")
		if err != nil {
			t.Fatal(err)
		}
		if st.SavedBytes == 0 || len(st.Vms) != 2 || st.KsmdCpuPercent <= 0 || st.Steering || !strings.HasPrefix(st.Detail, "mode "+mode+": nothing is steered; ") {
			t.Errorf("mode %s: %v", mode, st)
		}
		if looks := s.history.last(0); len(looks) < 10 || looks[len(looks)-1].SavedBytes == 0 || looks[0].Started != 2 {
			t.Errorf("mode %s: the history is %v", mode, looks)
		}
		if now := mustKnobs(t, s.m.sysfs); !maps.Equal(now, own) {
			t.Errorf("mode %s has set %v", mode, now)
		}
	}
}
