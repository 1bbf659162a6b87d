// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// hosts are hosts with settings of their own.
var hosts = map[string]knobs{
	"as the kernel comes":      {},
	"that merges by itself":    {knobRun: "1", knobPages: "400", knobSleep: "50", knobSmartScan: "0"},
	"with an advisor":          {knobRun: "1", knobPages: "500", knobAdvisor: "none [scan-time]", knobAdvisorCPU: "30"},
	"whose kernel has neither": {knobRun: "1", "old": "kernel"},
}

func fakeHost(t *testing.T, own knobs) (*model, *governor) {
	t.Helper()
	old := own["old"] != ""
	own = maps.Clone(own)
	delete(own, "old")
	m := newModel(t, own)
	if old {
		for _, name := range []string{knobSmartScan, knobAdvisor, knobAdvisorCPU, knobAdvisorMin, knobAdvisorMax, knobAdvisorFor} {
			os.Remove(filepath.Join(m.sysfs, name))
		}
	}
	g, err := newGovernor(kernel{m.sysfs}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return m, g
}

// successor is the governor of the next service in a governor's place.
func successor(t *testing.T, g *governor) *governor {
	t.Helper()
	next, err := newGovernor(g.kernel, filepath.Dir(g.mine.path))
	if err := errors.Join(err, next.adopt()); err != nil {
		t.Fatal(err)
	}
	return next
}

// kept is what the files of a governor have; empty: they are not there.
func kept(t *testing.T, g *governor) string {
	t.Helper()
	var all string
	for _, f := range []savedFile{g.file, g.mine} {
		text, err := os.ReadFile(f.path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		all += string(text)
	}
	return all
}

func mustKnobs(t *testing.T, dir string) knobs {
	t.Helper()
	k, err := kernel{dir}.knobs()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var (
	fast = knobs{knobRun: "1", knobPages: "5000", knobSleep: "20", knobSmartScan: "0", knobAdvisor: advisorNone}
	slow = knobs{knobRun: "1", knobPages: "10", knobSleep: "200", knobSmartScan: "1", knobAdvisor: advisorScanTime, knobAdvisorFor: "30", knobAdvisorCPU: "3", knobAdvisorMin: "10", knobAdvisorMax: "80"}
)

func TestTheHostsOwnSettingsComeBack(t *testing.T) {
	t.Parallel()
	for name, own := range hosts {
		for how, end := range map[string]func(*testing.T, *governor) *governor{
			"at the end": func(_ *testing.T, g *governor) *governor { return g },
			"by the next after a death": func(t *testing.T, g *governor) *governor {
				g.lock.Close() // as the kernel does for a process that was killed
				return successor(t, g)
			},
			"by the next that went on": func(t *testing.T, g *governor) *governor {
				g.lock.Close()
				next := successor(t, g)
				if err := next.apply(fast); err != nil {
					t.Fatal(err)
				}
				return next
			},
			"by another daemon that takes over": func(t *testing.T, g *governor) *governor {
				g.lock.Close()
				other, err := newGovernor(g.kernel, t.TempDir())
				if err := errors.Join(err, other.take(), other.apply(slow)); err != nil {
					t.Fatal(err)
				}
				if late := successor(t, g); late.steering() {
					t.Error("the successor steers as well")
				}
				return other
			},
		} {
			for _, orders := range [][]knobs{{}, {fast}, {fast, slow}, {fast, slow, fast}, {slow}} {
				m, g := fakeHost(t, own)
				before := mustKnobs(t, m.sysfs)
				if err := g.take(); err != nil {
					t.Fatal(err)
				}
				for _, o := range orders {
					if err := g.apply(o); err != nil {
						t.Fatal(err)
					}
					now := mustKnobs(t, m.sysfs)
					for name, value := range o {
						if has, ok := now[name]; ok && has != value && (name != knobPages || o[knobAdvisor] == advisorNone) {
							t.Errorf("a host %s: %s is %s after %s was asked for", name, name, has, value)
						}
					}
				}
				g = end(t, g)
				if err := g.release(); err != nil {
					t.Fatal(err)
				}
				after := mustKnobs(t, m.sysfs)
				if before[knobAdvisor] == advisorScanTime { // which sets it by itself
					before[knobPages] = after[knobPages]
				}
				if !maps.Equal(before, after) {
					t.Errorf("a host %s, %s, after %d orders:\n%v\nwere\n%v", name, how, len(orders), after, before)
				}
				if left := kept(t, g); left != "" || g.steering() {
					t.Errorf("a host %s, %s: %s is left", name, how, left)
				}
			}
		}
	}
}

// TestADeathBetweenTwoWritesIsNotTakenForSomebodyElse: the file is ahead of the kernel by at most one order.
func TestADeathBetweenTwoWritesIsNotTakenForSomebodyElse(t *testing.T) {
	t.Parallel()
	for _, done := range []int{0, 1, 2} { // writes of the second order that came through
		m, g := fakeHost(t, nil)
		before := mustKnobs(t, m.sysfs)
		if err := errors.Join(g.take(), g.apply(fast)); err != nil {
			t.Fatal(err)
		}
		next := saved{Host: g.saved.Host, Ours: map[string][]string{}}
		written := 0
		for _, name := range knobNames() {
			if value, ok := slow[name]; ok && name != knobPages {
				now, _, _ := g.kernel.knob(name)
				next.Ours[name] = []string{value, now}
				if written < done {
					written++
					m.write(m.sysfs, name, value)
				}
			}
		}
		if err := g.file.save(next); err != nil {
			t.Fatal(err)
		}
		g.lock.Close()
		g = successor(t, g)
		if err := g.apply(fast); err != nil {
			t.Errorf("after %d of the writes: %v", done, err)
		}
		if err := g.release(); err != nil {
			t.Fatal(err)
		}
		if after := mustKnobs(t, m.sysfs); !maps.Equal(before, after) {
			t.Errorf("after %d of the writes: %v were %v", done, after, before)
		}
	}
}

func TestWhatSomebodyElseHasSetIsLeft(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		knob, value  string
		run, restore string // afterwards: run, and sleep_millisecs, which nobody else touched
	}{
		{"faster", knobPages, "777", "1", "20"},
		{"stopped", knobRun, "0", "0", "20"},
		{"unmerging", knobRun, "2", "2", "20"},
	} {
		m, g := fakeHost(t, nil)
		if err := errors.Join(g.take(), g.apply(knobs{knobRun: "1", knobPages: "5000", knobSleep: "10"})); err != nil {
			t.Fatal(err)
		}
		m.write(m.sysfs, c.knob, c.value)
		if err := g.apply(fast); !errors.Is(err, errForeign) || !strings.Contains(err.Error(), c.knob) {
			t.Errorf("%s: %v", c.name, err)
		}
		now := mustKnobs(t, m.sysfs)
		if now[c.knob] != c.value || now[knobRun] != c.run || now[knobSleep] != c.restore {
			t.Errorf("%s: the kernel has %v", c.name, now)
		}
		// It is remembered by the next service as well, until somebody asks for it again.
		next := successor(t, g)
		if next.yielded == "" || next.steering() {
			t.Errorf("%s: the next service does not know", c.name)
		}
		if err := next.forgive(); err != nil || next.yielded != "" {
			t.Errorf("%s: it is not forgiven: %v", c.name, err)
		}
	}
	// At the end, too, only what is still ours goes back.
	m, g := fakeHost(t, nil)
	if err := errors.Join(g.take(), g.apply(fast)); err != nil {
		t.Fatal(err)
	}
	m.write(m.sysfs, knobPages, "777")
	if err := g.release(); err != nil {
		t.Fatal(err)
	}
	if now := mustKnobs(t, m.sysfs); now[knobPages] != "777" || now[knobRun] != "0" || now[knobSleep] != "20" {
		t.Errorf("the kernel has %v", now)
	}
}

func TestOneOfAHostSteersAndNobodyWhereItIsForbidden(t *testing.T) {
	t.Parallel()
	m, g := fakeHost(t, nil)
	if err := g.take(); err != nil {
		t.Fatal(err)
	}
	other, err := newGovernor(kernel{m.sysfs}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := other.take(); !errors.Is(err, errBusy) {
		t.Errorf("a second daemon steers as well: %v", err)
	}
	if err := errors.Join(g.release(), other.take(), other.release()); err != nil {
		t.Errorf("after the first: %v", err)
	}
	m.write(m.sysfs, knobRun, "2")
	if err := g.take(); !errors.Is(err, errUnmerging) || g.steering() {
		t.Errorf("a host that unmerges is steered: %v", err)
	}
}

// TestWhatAKilledDaemonLeftIsRestoredByAnyOther, soon, and by nobody while somebody steers or what is left cannot be had.
func TestWhatAKilledDaemonLeftIsRestoredByAnyOther(t *testing.T) {
	for _, mode := range []string{modeAuto, modeThrottle, modeObserve, modeOff} {
		m, g := fakeHost(t, nil)
		own := mustKnobs(t, m.sysfs)
		if err := errors.Join(g.take(), g.apply(fast)); err != nil {
			t.Fatal(err)
		}
		ours := mustKnobs(t, m.sysfs)
		c, err := newController(g.kernel, &proc{dir: m.proc}, t.TempDir(), mode, 60, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		at := m.at
		c.now = func() time.Time { return at }
		if c.step(); c.problem != "" || !maps.Equal(mustKnobs(t, m.sysfs), ours) {
			t.Errorf("mode %s, while another steers: %q, the kernel has %v", mode, c.problem, mustKnobs(t, m.sysfs))
		}
		g.lock.Close() // it is killed

		// Without a descriptor for the lock nothing is lost.
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		none := unix.Rlimit{Cur: 0, Max: limit.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
			t.Fatal(err)
		}
		c.step()
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(c.problem, "too many open files") || kept(t, g) == "" {
			t.Errorf("mode %s, without descriptors: %q, kept is %q", mode, c.problem, kept(t, g))
		}

		for range 2 { // in the second a last pass has had its time
			c.step()
			at = at.Add(time.Hour)
		}
		if now := mustKnobs(t, m.sysfs); !maps.Equal(now, own) || kept(t, g) != "" {
			t.Errorf("mode %s: the kernel has\n%v, had\n%v, kept is %q", mode, now, own, kept(t, g))
		}
	}
}

func TestSettingsOfAnEarlierBootAreForgotten(t *testing.T) {
	t.Parallel()
	m, g := fakeHost(t, nil)
	for _, f := range []savedFile{g.file, g.mine} {
		m.write(filepath.Dir(f.path), filepath.Base(f.path), `{"boot":"another","host":{"run":"1"},"ours":{"run":["0"]},"yielded":"why"}`)
	}
	if g = successor(t, g); g.steering() || g.yielded != "" {
		t.Error("they were taken for this one's")
	}
}
