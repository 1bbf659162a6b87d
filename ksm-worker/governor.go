// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// governor is the one that writes the kernel's settings. It steers from take to release; in
// between the kernel has settings of ours, and a file says what the host's own were.
type governor struct {
	kernel  kernel
	file    savedFile // the host's
	mine    savedFile // the daemon's
	saved   saved     // what the host's file says while steering
	lock    *os.File  // held while steering: of several daemons on a host one steers
	yielded string    // why the settings were left to somebody else; empty: they were not
}

var (
	// errBusy says that another Bulkhead of this host steers.
	errBusy = errors.New("another Bulkhead daemon steers the kernel's merging on this host")
	// errForeign says that somebody else has changed the settings meanwhile.
	errForeign = errors.New("somebody else has changed the kernel's settings")
	// errUnmerging says that the host's administrator forbids merging.
	errUnmerging = errors.New("the host unmerges (run is 2), which an administrator has asked for; write 0 to run to let pages be merged")
)

// newGovernor is one that does not steer yet, with dir for what is the daemon's own.
func newGovernor(k kernel, dir string) (*governor, error) {
	g := &governor{kernel: k, file: hostFile(k), mine: daemonFile(dir)}
	mine, err := g.mine.load()
	if mine != nil {
		g.yielded = mine.Yielded
	}
	return g, err
}

// adopt finds what a daemon of this host has left, this one's predecessor or another: settings that it did not come to restore. They are
// ours then. While another daemon steers they are that one's.
func (g *governor) adopt() error {
	if g.steering() {
		return nil
	}
	if left, err := g.file.load(); left == nil || err != nil {
		return err
	}
	lock, left, err := g.locked()
	switch {
	case errors.Is(err, errBusy):
		return nil
	case err != nil:
		return err // and the file stays: nobody else knows the host's own
	case left == nil:
		return lock.Close()
	}
	g.lock, g.saved = lock, *left
	return nil
}

// locked returns the lock, and what the last one that held it has left; nil: nothing.
func (g *governor) locked() (*os.File, *saved, error) {
	lock, err := lockKernel(g.kernel.dir)
	if err != nil {
		return nil, nil, err
	}
	left, err := g.file.load()
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return lock, left, nil
}

// lockKernel makes sure that one process steers. The lock ends with the process.
func lockKernel(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the kernel's ksm directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errBusy
		}
		return nil, fmt.Errorf("lock the kernel's ksm directory: %w", err)
	}
	return f, nil
}

// steering says whether the settings are ours.
func (g *governor) steering() bool { return g.saved.Host != nil }

// forgive lets the governor steer again after it has yielded.
func (g *governor) forgive() error {
	if g.yielded == "" {
		return nil
	}
	g.yielded = ""
	return g.mine.remove()
}

// take keeps the host's own settings, or takes over those that another has kept and left. Nothing is written to the kernel yet.
func (g *governor) take() error {
	if g.steering() {
		return nil
	}
	lock, left, err := g.locked()
	if err != nil {
		return err
	}
	if left != nil {
		g.lock, g.saved = lock, *left
		return nil
	}
	host, err := g.kernel.knobs()
	if err == nil && host[knobRun] == "2" {
		err = errUnmerging
	}
	if err == nil {
		err = g.file.save(saved{Host: host})
	}
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	g.lock, g.saved = lock, saved{Host: host}
	return nil
}

// apply gives the kernel these settings; those that this kernel does not have are left out. Where
// somebody else has changed one meanwhile it yields: what is still ours goes back, and the error is errForeign.
func (g *governor) apply(want knobs) error {
	now, err := g.kernel.knobs()
	if err != nil {
		return err
	}
	if err := g.foreign(now); err != nil {
		return errors.Join(err, g.yield(now, err))
	}
	want = maps.Clone(want)
	maps.DeleteFunc(want, func(name, _ string) bool { _, has := now[name]; return !has })
	if want[knobAdvisor] == advisorScanTime {
		delete(want, knobPages) // the advisor's from here on
	}
	if !g.differ(now, want) {
		return nil
	}
	// The file knows what is about to be written, and what was before: a successor recognises both.
	next := saved{Host: g.saved.Host, Ours: map[string][]string{}}
	for name, value := range want {
		next.Ours[name] = []string{value}
		if now[name] != value {
			next.Ours[name] = append(next.Ours[name], now[name])
		}
	}
	for name, values := range g.saved.Ours { // that are not changed now
		if _, changed := want[name]; !changed {
			next.Ours[name] = values
		}
	}
	if want[knobAdvisor] == advisorScanTime {
		delete(next.Ours, knobPages)
	}
	if err := g.file.save(next); err != nil {
		return err
	}
	g.saved = next
	if err := g.writeAll(now, want); err != nil {
		return err
	}
	g.saved = saved{Host: next.Host, Ours: map[string][]string{}}
	for name, values := range next.Ours {
		g.saved.Ours[name] = values[:1]
	}
	return g.file.save(g.saved)
}

// differ says whether anything is to be written.
func (g *governor) differ(now, want knobs) bool {
	for name, value := range want {
		if now[name] != value || g.saved.Ours[name] == nil {
			return true
		}
	}
	return false
}

// writeAll writes what differs. An advisor that is to go, or whose limits change, goes first.
func (g *governor) writeAll(now, want knobs) error {
	if advisor, ok := want[knobAdvisor]; ok && now[knobAdvisor] != advisorNone && (advisor == advisorNone || g.limitsChange(now, want)) {
		if err := g.kernel.write(knobAdvisor, advisorNone); err != nil {
			return err
		}
		now = maps.Clone(now)
		now[knobAdvisor] = advisorNone
		delete(now, knobPages) // the kernel sets its default with that
	}
	for _, name := range knobNames() {
		value, ok := want[name]
		if !ok || now[name] == value {
			continue
		}
		if err := g.kernel.write(name, value); err != nil {
			return err
		}
	}
	return nil
}

func (g *governor) limitsChange(now, want knobs) bool {
	return slices.ContainsFunc([]string{knobAdvisorCPU, knobAdvisorFor, knobAdvisorMin, knobAdvisorMax}, func(name string) bool {
		value, ok := want[name]
		return ok && now[name] != value
	})
}

// foreign finds a setting that is not what we last wrote.
func (g *governor) foreign(now knobs) error {
	for _, name := range knobNames() {
		ours := g.saved.Ours[name]
		if len(ours) == 0 || slices.Contains(ours, now[name]) {
			continue
		}
		if name == knobPages && g.wasAdvised() {
			continue // a predecessor died between the end of its advisor and what it set instead
		}
		return fmt.Errorf("%w: %s is %s, and we had set %s", errForeign, name, now[name], ours[0])
	}
	return nil
}

// yield leaves the kernel to whoever has changed it. Of what is still ours all goes back but
// run: he sees it as it is, and may count on it.
func (g *governor) yield(now knobs, why error) error {
	back := knobs{}
	for name, value := range g.saved.Host {
		if name != knobRun && slices.Contains(g.saved.Ours[name], now[name]) {
			back[name] = value
		}
	}
	err := g.writeAll(now, back)
	g.saved, g.yielded = saved{}, why.Error()
	// In this order: one that dies in between has yielded, and gives back what is ours.
	return errors.Join(err, g.mine.save(saved{Yielded: g.yielded}), g.file.remove(), g.unlock())
}

// release gives the host its own settings back, but for what somebody else has set
// meanwhile. What is merged stays merged.
func (g *governor) release() error {
	if !g.steering() {
		return nil
	}
	now, err := g.kernel.knobs()
	if err != nil {
		return err
	}
	back := knobs{}
	for name, value := range g.saved.Host {
		switch ours := g.saved.Ours[name]; {
		case len(ours) > 0 && slices.Contains(ours, now[name]):
			back[name] = value
		case len(ours) == 0 && name == knobPages && g.wasAdvised():
			back[name] = value // the advisor that we set has moved it
		}
	}
	if g.saved.Host[knobAdvisor] == advisorScanTime {
		delete(back, knobPages) // its advisor finds it anew
	}
	if err := g.writeAll(now, back); err != nil {
		return err // and the file stays, for another attempt
	}
	g.saved = saved{}
	return errors.Join(g.file.remove(), g.unlock())
}

func (g *governor) wasAdvised() bool {
	return slices.Contains(g.saved.Ours[knobAdvisor], advisorScanTime)
}

func (g *governor) unlock() error {
	if g.lock == nil {
		return nil
	}
	err := g.lock.Close()
	g.lock = nil
	return err
}
