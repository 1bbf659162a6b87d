// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package memory keeps what the containers use below what the machine has, and
// has the host add memory when they need more and take back what they leave unused.
//
// It imports nothing of ours. The invariant to remember: the containers' cgroup
// never may use what the kernel and the agent live on, so that both can go on when
// the containers have taken all the rest; a charge that meets the border waits there
// for the host (deploy/guest/patches/0003), and is killed for only when the host has refused.
package memory

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	mib = 1 << 20
	// Block is what memory is added in: the blocks of this kernel on x86-64. Each
	// needs 2 MiB of what is there for its page descriptors.
	Block = 128 * mib
	// headroom is kept for the kernel and the agent: the descriptors of the next
	// block, the set-up of a further container. The kernel's own reserve comes to it.
	headroom = 12 * mib
	// worthwhile is the least by which raising the border alone helps.
	worthwhile = 4 * mib
	// spare is what may be unused in a machine that could be smaller.
	spare = 24 * mib
	// slack is what the cgroup of all containers may use beyond their limits: the
	// limit that a container meets first shall be its own.
	slack = 16 * mib
)

const (
	waitTime    = 30 * time.Second       // for the host, before the kernel kills
	askAgain    = 500 * time.Millisecond // until the host has answered
	refusedTime = 2 * time.Second        // during which a refusal holds, twice as long each time
	maxRefused  = 30 * time.Second       // and at most
	tick        = 2 * time.Second        // between two looks at a machine that could be smaller
	calmTicks   = 5                      // that it has to be so before anything is given back
	maxTick     = time.Minute            // when the kernel did not let go what was asked back
	cacheRest   = 10 * time.Second       // after the border was met: until cached files are given up
)

// Machine is what the machine has and may get, in bytes.
type Machine struct {
	Has        uint64 // that of the kernel included
	Limit      uint64 // up to which the host adds memory
	Containers uint64 // of that, what the containers may use together
	Base       uint64 // what it was started with
}

// Config is what a Governor works with.
type Config struct {
	Log hclog.Logger
	Dir string // of the cgroup that all containers are in
	// Ask tells the host how much the machine should have. Each wish has a higher number than the one before.
	Ask func(bytes, number uint64)
	// Proc is proc(5); empty means /proc.
	Proc string
}

// Governor moves the border.
type Governor struct {
	cfg   Config
	group group
	poke  chan struct{} // capacity 1: something has changed

	mu      sync.Mutex // guards all below
	machine Machine
	unseen  uint64        // of what the machine has, the kernel's own from its start, which it does not count
	asked   uint64        // of the host, and not answered yet; 0: nothing
	since   time.Time     // when it was asked for that first
	silent  bool          // it has not answered for so long that nobody waits for it
	number  uint64        // of the newest wish
	offered uint64        // what is to stay of a machine of which the host may be taking the rest; 0: all
	offer   uint64        // number of the wish by which it may
	refused time.Time     // when the host refused; zero: it did not
	denied  time.Time     // when it refused last
	hold    time.Duration // how long a refusal holds
	met     time.Time     // when the border was met last
	hungry  bool          // it was met, and nothing has helped yet
	calm    int           // looks in a row at which the machine could have been smaller
	tick    time.Duration
	cache   cache
}

// New makes a governor, and the cgroup where it is not there yet. Set gives it its machine.
func New(c Config) (*Governor, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the containers' cgroup: %w", err)
	}
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	return &Governor{cfg: c, group: group(c.Dir), poke: make(chan struct{}, 1), tick: tick}, nil
}

// Set tells what the machine is now: as the host's answer to the wish with this number and all older ones,
// or, with 0, by its own decision.
func (g *Governor) Set(m Machine, number uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.machine.Has
	if was == 0 {
		total, _, err := g.meminfo()
		if err != nil {
			return err
		}
		g.unseen = m.Has - min(total, m.Has)
	}
	g.machine, g.refused = m, time.Time{}
	g.answered(number)
	if m.Has != was {
		g.calm = 0
	}
	if m.Has > was {
		g.tick, g.hold = tick, 0
	}
	defer g.wake()
	if g.hungry {
		return g.feed()
	}
	return g.draw()
}

// Refused tells that the host has no more to give now, as the answer to the wish with this number.
func (g *Governor) Refused(m Machine, number uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.machine = m
	current := number == g.number && g.asked > m.Has // else it is not what the containers wait for now
	g.answered(number)
	if !current {
		g.wake()
		return g.draw()
	}
	g.hungry, g.refused = false, time.Now()
	// Who lives on cached files would wait at the border again and again, and could do without.
	if time.Since(g.denied) > 2*maxRefused {
		g.hold = 0
	}
	g.hold, g.denied = min(max(2*g.hold, refusedTime), maxRefused), time.Now()
	g.wake()
	return g.draw()
}

// answered ends the wishes up to a number. The host acts on none of them any more, so what one of them
// offered and it has not taken is the containers' again.
func (g *Governor) answered(number uint64) {
	if number > 0 {
		g.silent = false
	}
	if g.offered != 0 && number >= g.offer {
		g.offered = 0
	}
	if number >= g.number {
		g.asked = 0
	}
}

// Agree tells whether the host may take what the wish with this number leaves. If so, the containers do not
// get it until the wish is answered; if not, the host takes nothing by it, and they have it at once.
func (g *Governor) Agree(number uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.offered == 0 || number != g.offer {
		return false
	}
	if number == g.number && !g.hungry {
		// Once more, as the kernel may have taken some of what was free then.
		if err := g.draw(); err == nil && g.group.number("memory.max") >= g.group.number("memory.current") {
			return true
		}
		g.asked = 0
	}
	g.offered = 0
	if err := g.feed(); err != nil {
		g.cfg.Log.Error("the memory of the containers is not followed", "error", err)
	}
	return false
}

// Trim has what is unused given back at once.
func (g *Governor) Trim() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget()
	g.trimCache(true)
	g.shrink(true)
	g.wake()
}

func (g *Governor) wake() {
	select {
	case g.poke <- struct{}{}:
	default:
	}
}

// Run follows the containers until the context ends. A machine that has no
// more than it was started with, and whose containers are content, wakes nobody.
func (g *Governor) Run(ctx context.Context) error {
	met, err := g.group.watch(ctx)
	if err != nil {
		return err
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Stop()
		if next := g.next(); next > 0 {
			timer.Reset(next)
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-met:
			if !ok {
				return errors.Join(ctx.Err(), errors.New("the watch of the containers' memory ended"))
			}
			g.reached()
		case <-timer.C:
			g.look()
		case <-g.poke:
		}
	}
}

// next is when there is something to look at; 0 is never.
func (g *Governor) next() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.asked != 0:
		return askAgain
	case !g.refused.IsZero():
		return max(time.Until(g.refused.Add(g.hold)), time.Millisecond)
	case g.machine.Has > g.machine.Base:
		return g.tick
	}
	return 0
}

// reached is called when a charge has met the border.
func (g *Governor) reached() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.met, g.calm, g.tick, g.hungry = time.Now(), 0, tick, true
	if err := g.feed(); err != nil {
		g.cfg.Log.Error("the memory of the containers is not followed", "error", err)
	}
}

// feed lets the charges that wait at the border go on, or asks the host for what they need. Who waits
// says so once only: what does not help is followed by more.
func (g *Governor) feed() error {
	before := g.group.number("memory.max")
	if err := g.draw(); err != nil {
		return err
	}
	switch {
	case g.group.number("memory.max") >= before+worthwhile, g.machine.Has >= g.machine.Limit && g.offered == 0, !g.refused.IsZero():
		g.hungry = false
	case g.asked == 0 || g.asked < g.machine.Has: // else it is asked again until it is answered
		// In steps of a half: few of them to any size, and no more than that unused.
		step := max(blocks(g.machine.Has/2), Block)
		g.ask(max(min(g.machine.Has+step, g.machine.Base+blocks(g.machine.Limit-g.machine.Base)), g.machine.Has))
	}
	return nil
}

func (g *Governor) ask(bytes uint64) {
	g.asked, g.since = bytes, time.Now()
	g.number++
	g.cfg.Ask(bytes, g.number)
	g.wake()
}

// look repeats what was not answered, ends a refusal, and finds what could be
// given back.
func (g *Governor) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget()
	if g.asked != 0 {
		if g.asked > g.machine.Has && !g.silent && time.Since(g.since) >= waitTime {
			// Each further charge would wait as long. They get along with what there is, as at any limit, until the host is back.
			g.silent = true
			g.redraw()
		}
		g.cfg.Ask(g.asked, g.number)
		return
	}
	if !g.refused.IsZero() {
		if time.Since(g.refused) >= g.hold {
			g.refused = time.Time{}
			g.redraw()
		}
		return
	}
	if time.Since(g.met) >= cacheRest {
		g.trimCache(false)
	}
	g.shrink(false)
}

// forget takes back a wish for more when nobody can be waiting at the border any more.
func (g *Governor) forget() {
	if g.offered == 0 && g.asked > g.machine.Has && g.group.number("memory.current")+spare < g.group.number("memory.max") {
		g.asked, g.hungry = 0, false
		if g.silent { // who meets the border next may wait again
			g.silent = false
			g.redraw()
		}
	}
}

// shrink asks for less when much has been unused for a while, or now.
func (g *Governor) shrink(now bool) {
	base := g.machine.Base
	if g.asked != 0 || g.offered != 0 || g.machine.Has <= base {
		return
	}
	total, free, err := g.meminfo()
	if err != nil {
		g.cfg.Log.Error("the guest's memory is not known", "error", err)
		return
	}
	used := total - min(free, total)
	unseen := g.machine.Has - min(total, g.machine.Has) // the kernel's from its start
	need := unseen + used + headroom + 2*reserve(total) + spare
	if !now {
		need += used / 8
	}
	want := base
	if need > base {
		want += blocks(need - base)
	}
	if want >= g.machine.Has {
		g.calm = 0
		return
	}
	if g.calm++; g.calm < calmTicks && !now {
		return
	}
	g.calm = 0
	// What the kernel cannot let go is asked for less and less often.
	g.tick = min(2*g.tick, maxTick)
	// The border comes first: what is asked back may not be taken meanwhile.
	g.offered, g.offer = want, g.number+1
	if err := g.draw(); err != nil {
		g.cfg.Log.Error("the memory of the containers is not followed", "error", err)
		g.offered = 0
		return
	}
	g.ask(want)
}

// redraw is draw where nobody can be told of an error.
func (g *Governor) redraw() {
	if err := g.draw(); err != nil {
		g.cfg.Log.Error("the memory of the containers is not followed", "error", err)
	}
}

// draw sets the border to what the machine has beside the kernel and the agent.
func (g *Governor) draw() error {
	m := g.machine
	total, free, err := g.meminfo()
	if err != nil {
		return err
	}
	if err := g.setReserve(reserve(total)); err != nil {
		return err
	}
	// Below one and a half of its reserve the kernel reclaims, and near it, it kills.
	border := g.group.number("memory.current") + free - min(free, headroom+2*reserve(total))
	// A host takes memory away bit by bit and tells when it is done, or never, if it dies meanwhile.
	has := min(m.Has, total+g.unseen)
	shrinks := g.offered != 0 && g.offered < has
	if shrinks {
		border -= min(border, has-g.offered) // about to go
	}
	grows := has < m.Limit || shrinks
	if !grows {
		border = max(border, m.Containers+slack)
	}
	wait := uint64(0)
	if grows && g.refused.IsZero() && !g.silent {
		wait = uint64(waitTime / time.Millisecond)
	}
	type file struct {
		name  string
		value uint64
	}
	files := []file{{"memory.max.later", m.Containers}, {"memory.max.wait", wait}, {"memory.max", border}}
	if wait == 0 { // who waits at the old border would be killed for it
		slices.Reverse(files)
	}
	for _, f := range files {
		if err := g.group.write(f.name, f.value); err != nil {
			return fmt.Errorf("moving the border of the containers' memory: %w", err)
		}
	}
	return nil
}

// reserve is what the kernel keeps for what cannot wait (init_per_zone_wmark_min, in mm/page_alloc.c).
func reserve(total uint64) uint64 { return 4 * uint64(math.Sqrt(float64(total>>10))) << 10 }

// setReserve has the kernel keep no more: for transparent huge pages it would take a twentieth of the
// machine, each time that memory is added.
func (g *Governor) setReserve(bytes uint64) error {
	file := filepath.Join(g.cfg.Proc, "sys/vm/min_free_kbytes")
	want := strconv.FormatUint(bytes>>10, 10)
	if now, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(now)) == want {
		return nil
	}
	return os.WriteFile(file, []byte(want), 0)
}

func blocks(bytes uint64) uint64 { return (bytes + Block - 1) / Block * Block }

// meminfo is the machine's memory and what of it is free, in bytes.
func (g *Governor) meminfo() (total, free uint64, err error) {
	text, err := os.ReadFile(filepath.Join(g.cfg.Proc, "meminfo"))
	if err != nil {
		return 0, 0, err
	}
	for _, f := range []struct {
		name string
		to   *uint64
	}{{"MemTotal:", &total}, {"MemFree:", &free}} {
		_, rest, _ := strings.Cut(string(text), f.name)
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return 0, 0, fmt.Errorf("/proc/meminfo has no %s", f.name)
		}
		kib, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/meminfo, %s: %w", f.name, err)
		}
		*f.to = kib << 10
	}
	return total, free, nil
}

// group is the directory of a cgroup.
type group string

// number reads a file of one number; "max" and what cannot be read are 0.
func (g group) number(file string) uint64 {
	text, err := os.ReadFile(filepath.Join(string(g), file))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (g group) write(file string, value uint64) error {
	return os.WriteFile(filepath.Join(string(g), file), strconv.AppendUint(nil, value, 10), 0)
}
