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
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	mib = 1 << 20
	// Block is what memory is added in: the blocks of this kernel on x86-64. Each
	// needs 2 MiB of what is there for its page descriptors.
	Block = 128 * mib
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
	taking  bool          // the containers agreed to that, and the host has not told since what the machine has
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

// Trim has what is unused given back at once.
func (g *Governor) Trim() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget()
	g.trimCache(true)
	g.shrink(true)
	g.wake()
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
	case g.asked != 0, g.comes():
		return askAgain
	case !g.refused.IsZero():
		return max(time.Until(g.refused.Add(g.hold)), time.Millisecond)
	case g.machine.Has > g.machine.Base:
		return g.tick
	}
	return 0
}

func (g *Governor) wake() {
	select {
	case g.poke <- struct{}{}:
	default:
	}
}
