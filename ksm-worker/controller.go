// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	ksmv1 "bulkhead/proto/ksm/v1"
)

// The modes.
const (
	modeAuto     = "auto"
	modeThrottle = "throttle"
	modeObserve  = "observe"
	modeOff      = "off"
)

// Phases without a policy at work.
const (
	phaseIdle    = "idle"
	phaseYielded = "yielded"
	// phaseClearing is a last pass after the last VM.
	phaseClearing = "clearing"
)

// controller decides when to look, asks the policy and has the governor do what it says.
type controller struct {
	kernel kernel
	proc   *proc
	log    hclog.Logger
	tell   func(event string, attributes map[string]string) // publishes an event; must not block
	now    func() time.Time

	mu       sync.Mutex // guards all below
	governor *governor
	mode     string
	budget   float64
	policy   policy // nil: nothing to steer for
	vms      map[string]vm
	sorted   []vm      // list; nil: it has changed
	vmPages  int64     // anonymous pages of the VMs
	counted  time.Time // when these were
	history  history
	meter    meter
	last     look
	problem  string // why it does not do what it should; said once
	phase    string // as last told
	ended    bool
	clearing *seen // what was there as the last VM had gone

	vmsChanged bool // since their pages were counted

	told struct{ started, stopped, kicks int32 } // since the last sample of the history
}

// look is what the last one found.
type look struct {
	seen    seen
	kernel  *ksmv1.KernelState
	cpu     float64 // percent of a core, of late; negative: unknown
	cpuBase seen    // from which it is counted
	allowed float64
}

// countEvery is how often the pages of VMs are counted when none comes or goes.
const countEvery = 30 * time.Second

// countVM is how much later they are counted for each VM when many come and go: a file is read of
// each, which would take as long as the starts themselves were it done for every one of them.
const countVM = 4 * time.Millisecond

// idleLook is how often the host is looked at while nothing is steered.
const idleLook = time.Minute

func newController(k kernel, p *proc, dir, mode string, budget int, log hclog.Logger) (*controller, error) {
	c := &controller{
		kernel: k, proc: p, log: log, mode: mode, budget: float64(budget), meter: meter{cost: firstCost},
		tell: func(string, map[string]string) {}, now: time.Now, vms: map[string]vm{},
	}
	var err error
	c.governor, err = newGovernor(k, dir)
	return c, err
}

// come says that a VM is there, or that what is known of it has changed.
func (c *controller) come(v vm) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was, known := c.vms[v.sandbox]
	if !known {
		c.told.started++
		if c.policy != nil {
			c.policy.started(c.now())
		}
	}
	if was != v { // a record is written for much else
		c.vms[v.sandbox], c.sorted = v, nil
	}
	c.vmsChanged = true
}

// gone says that a VM is not there any more.
func (c *controller) gone(sandbox string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.vms[sandbox]; !known {
		return
	}
	delete(c.vms, sandbox)
	c.sorted = nil
	c.vmsChanged = true
	c.told.stopped++
	if c.policy != nil {
		c.policy.stopped(c.now())
	}
}

// kick is a VM's start by request. It returns the phase.
func (c *controller) kick() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mode == modeOff || c.mode == modeObserve:
		return "", bus.Errorf(bus.FailedPrecondition, "mode %s steers nothing; set mode auto or throttle first", c.mode)
	case c.governor.yielded != "":
		return "", bus.Errorf(bus.FailedPrecondition, "the settings were left alone: %s; set a mode to steer again", c.governor.yielded)
	case c.policy == nil:
		return phaseIdle, nil
	}
	c.told.kicks++
	c.policy.started(c.now())
	return c.policy.phase(), nil
}

// set changes the mode and the budget. It also ends yielding.
func (c *controller) set(mode string, budget int32) error {
	if mode != "" && !slices.Contains([]string{modeAuto, modeThrottle, modeObserve, modeOff}, mode) {
		return bus.Errorf(bus.InvalidArgument, "mode %q is none of auto, throttle, observe, off", mode)
	}
	if budget < 0 || budget > 100 {
		return bus.Errorf(bus.InvalidArgument, "max_cpu_percent %d is not from 1 to 100", budget)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.governor.forgive(); err != nil {
		return err
	}
	c.problem = ""
	if budget > 0 {
		c.budget = float64(budget)
	}
	if mode != "" {
		c.mode = mode
		c.tell("mode", map[string]string{"mode": mode})
	}
	c.policy = nil // begins anew, with the next look
	return nil
}

// step looks once, and says when to look again.
func (c *controller) step() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return idleLook
	}
	if err := c.governor.adopt(); err != nil {
		c.complain(err)
	}
	if err := c.look(); err != nil {
		if !c.steers() {
			err = errors.Join(err, c.restore())
		}
		c.complain(err)
		return idleLook
	}
	again, err := c.steer()
	if err != nil {
		c.complain(err)
	}
	c.note()
	return again
}

// steers says whether the mode does.
func (c *controller) steers() bool { return c.mode == modeAuto || c.mode == modeThrottle }

// steer does what mode, VMs and policy ask for.
func (c *controller) steer() (time.Duration, error) {
	var failed error
	if c.steers() && len(c.vms) == 0 && c.governor.steering() && c.governor.yielded == "" {
		more, err := c.clear()
		if more {
			return shortestLook, nil
		}
		failed = err
	}
	c.clearing = nil
	if !c.steers() || len(c.vms) == 0 || !c.last.kernel.Available || c.governor.yielded != "" {
		c.policy, c.last.allowed = nil, 0
		return idleLook, errors.Join(failed, c.restore())
	}
	if c.policy == nil {
		c.begin()
	}
	o := c.policy.look(c.last.seen)
	c.last.allowed = o.budget
	if o.settings == nil {
		return o.again, c.restore()
	}
	if !c.governor.steering() {
		if err := c.governor.take(); err != nil {
			return idleLook, err
		}
		c.tell("steering", map[string]string{"mode": c.mode, "vms": fmt.Sprint(len(c.vms))})
	}
	err := c.apply(o.settings)
	if errors.Is(err, errForeign) {
		return idleLook, err
	}
	return o.again, err
}

// apply has the governor do it. Where somebody else has changed the settings, steering ends with that, and it is told.
func (c *controller) apply(settings knobs) error {
	err := c.governor.apply(settings)
	switch {
	case errors.Is(err, errForeign):
		c.policy, c.last.allowed = nil, 0
		c.tell("yielded", map[string]string{"reason": err.Error()})
	case err == nil:
		c.problem = ""
	}
	return err
}

// clear lets ksmd go once more over what it knows after the last VM: it forgets the pages of a process that has ended when it next
// comes by, and keeps the notes of them in memory until then. more is false when that is done, or cannot be.
func (c *controller) clear() (more bool, err error) {
	now := c.last.seen
	if c.clearing == nil {
		c.policy, c.clearing = nil, &now
	}
	rate := now.affordable(c.budget)
	bound := time.Duration(float64(c.clearing.tracked) / rate * 2 * float64(time.Second))
	bound = min(max(bound, clearTime), longestClear)
	if now.fullScans > c.clearing.fullScans || now.tracked == 0 || now.at.Sub(c.clearing.at) >= bound || now.hostRate(now.tracked) >= rate {
		return false, nil
	}
	c.last.allowed = c.budget
	err = c.apply(knobs{
		knobPages: number(step(now.batch(rate, sweepSleep))), knobSleep: number(sweepSleep.Milliseconds()), knobAdvisor: advisorNone, knobRun: "1",
	})
	return err == nil, err
}

// clearTime is what that pass has at least, longestClear what it has at most where the budget is small.
const (
	clearTime    = 10 * time.Second
	longestClear = time.Minute
)

// begin makes the policy of the mode.
func (c *controller) begin() {
	if c.mode == modeThrottle {
		t := newThrottle()
		t.started(c.now())
		c.policy = t
		return
	}
	c.policy = newAuto(c.budget, c.now())
}

// restore gives the host its own settings, if they are not.
func (c *controller) restore() error {
	if !c.governor.steering() {
		return nil
	}
	if err := c.governor.release(); err != nil {
		return err
	}
	c.tell("restored", nil)
	return nil
}

// end restores, and nothing is steered any more.
func (c *controller) end() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended, c.policy = true, nil
	return c.restore()
}

// look reads the host.
func (c *controller) look() error {
	k, err := c.kernel.read()
	if err != nil {
		return err
	}
	m, err := c.proc.memory()
	if err != nil {
		return err
	}
	s := seen{
		at:     c.now(),
		merged: k.PagesSharing + k.KsmZeroPages, tracked: k.PagesShared + k.PagesSharing + k.PagesUnshared + k.PagesVolatile,
		volatile: k.PagesVolatile, fullScans: k.FullScans, scanned: k.PagesScanned, profit: k.GeneralProfit,
		pressure: m.pressure(), anonPages: m.anonPages, vms: len(c.vms),
	}
	s.cpu, s.cpuKnown = c.proc.ksmdCPU()
	c.meter.measure(s)
	s.cost = c.meter.cost
	if s.host = c.governor.saved.Host; s.host == nil && c.steers() {
		if s.host, err = c.kernel.knobs(); err != nil {
			return err
		}
	}
	// Of each VM a file is read for that, which only auto needs.
	if since := s.at.Sub(c.counted); c.mode == modeAuto && (c.vmsChanged && since >= time.Duration(len(c.vms))*countVM || since > countEvery) {
		c.vmPages, c.counted, c.vmsChanged = c.proc.anonymous(c.list()), s.at, false
	}
	s.vmPages = c.vmPages
	before := c.last
	c.last = look{seen: s, kernel: k, cpu: before.cpu, cpuBase: before.cpuBase}
	switch base := before.cpuBase; {
	case !s.cpuKnown:
		c.last.cpu = -1
	case base.at.IsZero():
		c.last.cpu, c.last.cpuBase = -1, s
	case s.at.Sub(base.at) >= lookEvery: // the clock of processor time is coarse
		c.last.cpu, c.last.cpuBase = 100*(s.cpu-base.cpu).Seconds()/s.at.Sub(base.at).Seconds(), s
	}
	if s.at.Sub(c.history.newest()) < lookEvery {
		return nil
	}
	c.history.add(&ksmv1.Sample{
		Time: timestamppb.New(s.at), Phase: c.phaseNow(), Vms: int32(s.vms), SavedBytes: s.merged * pageSize,
		FullScans: k.FullScans, PagesVolatile: k.PagesVolatile, PagesToScan: k.PagesToScan, SleepMillisecs: k.SleepMillisecs,
		KsmdCpuPercent: c.last.cpu, MemoryPressure: s.pressure, Interval: durationpb.New(max(0, s.at.Sub(before.seen.at))),
		Started: c.told.started, Stopped: c.told.stopped, Kicks: c.told.kicks,
	})
	c.told.started, c.told.stopped, c.told.kicks = 0, 0, 0
	return nil
}

// list is the VMs in the order of their names, to be read only: the next who asks gets the same.
func (c *controller) list() []vm {
	if c.sorted == nil {
		c.sorted = slices.SortedFunc(maps.Values(c.vms), func(a, b vm) int { return cmp.Compare(a.sandbox, b.sandbox) })
	}
	return c.sorted
}

func (c *controller) phaseNow() string {
	switch {
	case c.governor.yielded != "":
		return phaseYielded
	case c.clearing != nil:
		return phaseClearing
	case c.policy == nil:
		return phaseIdle
	}
	return c.policy.phase()
}

// note tells of a new phase.
func (c *controller) note() {
	if now := c.phaseNow(); now != c.phase {
		c.phase = now
		c.log.Debug("phase", "phase", now, "saved_mib", c.last.seen.merged*pageSize>>20, "vms", len(c.vms))
		c.tell("phase", map[string]string{"phase": now, "saved_bytes": fmt.Sprint(c.last.seen.merged * pageSize), "vms": fmt.Sprint(len(c.vms))})
	}
}

// complain says once what is wrong.
func (c *controller) complain(err error) {
	if err.Error() == c.problem {
		return
	}
	c.problem = err.Error()
	c.log.Warn("memory is not merged as it could be", "reason", err)
	if !errors.Is(err, errForeign) { // that has an event of its own
		c.tell("failed", map[string]string{"reason": err.Error()})
	}
}
