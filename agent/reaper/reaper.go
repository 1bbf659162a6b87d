// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package reaper collects the orphans that PID 1 inherits, and never a child
// somebody else waits for.
//
// PID 1 has two kinds of children: those it started (libcontainer's processes,
// which libcontainer waits for by pid) and those the kernel handed to it. A
// plain wait4(-1) would take the first kind's exit status away. So the reaper
// looks before it takes: waitid(WNOWAIT) shows a dead child without collecting
// it, and it is collected only when nobody can own it.
//
// Ownership has two stages, because libcontainer forks several helpers whose
// pids it alone knows. While a start is under way (Begin … Finish) every dead
// child that appears may belong to it; Finish names the one pid that lives on,
// which stays owned until Release. The invariant: a child is collected only if
// it is owned by no one and every start that was under way when it was first
// seen dead has finished.
//
// The kernel shows one dead child at a time. If that one is owned, those behind
// it wait until its owner has collected it, and the Finish or Release that
// follows looks again; no dead child is forgotten and nothing polls.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Reaper collects orphans. Use New; the zero value is not ready.
type Reaper struct {
	wake chan struct{}

	mu     sync.Mutex // guards all below
	seq    uint64     // number of the newest start
	starts map[uint64]struct{}
	owned  map[int]struct{}
	first  sighting
	reaped uint64
}

// sighting remembers when the dead child at the head of the kernel's list was
// first seen; the start time tells it from a later process with the same pid.
type sighting struct {
	pid   int
	start uint64
	seq   uint64
}

// New returns a reaper that does nothing until Run.
func New() *Reaper {
	return &Reaper{
		wake:   make(chan struct{}, 1),
		starts: make(map[uint64]struct{}),
		owned:  make(map[int]struct{}),
	}
}

// Start is one operation that forks children it waits for itself.
type Start struct {
	r    *Reaper
	seq  uint64
	once sync.Once
}

// Begin announces an operation that will fork; call Finish when it is over.
func (r *Reaper) Begin() *Start {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	r.starts[r.seq] = struct{}{}
	return &Start{r: r, seq: r.seq}
}

// Finish ends the operation. A pid above zero is a child that its starter keeps
// waiting for; it stays owned until Release.
func (s *Start) Finish(pid int) {
	s.once.Do(func() {
		s.r.mu.Lock()
		delete(s.r.starts, s.seq)
		if pid > 0 {
			s.r.owned[pid] = struct{}{}
		}
		s.r.mu.Unlock()
		s.r.look()
	})
}

// Release gives up a pid after its owner has collected it.
func (r *Reaper) Release(pid int) {
	r.mu.Lock()
	delete(r.owned, pid)
	r.mu.Unlock()
	r.look()
}

// Reaped says how many orphans were collected so far.
func (r *Reaper) Reaped() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reaped
}

func (r *Reaper) look() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run collects orphans until the context ends.
func (r *Reaper) Run(ctx context.Context) error {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		if err := r.sweep(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-died:
		case <-r.wake:
		}
	}
}

// sweep collects dead children until there is none or the next one has an owner.
func (r *Reaper) sweep() error {
	for {
		pid, err := peek()
		if err != nil || pid == 0 {
			return err
		}
		if !r.orphan(pid) {
			return nil
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.ECHILD) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("collecting orphan %d: %w", pid, err)
		}
	}
}

// orphan decides about the dead child at the head of the list. When it answers
// no, a later Finish or Release asks again.
func (r *Reaper) orphan(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.owned[pid]; ok {
		return false
	}
	if len(r.starts) == 0 {
		r.first = sighting{}
		r.reaped++
		return true
	}
	start, err := startTime(pid)
	if err != nil {
		// Collected by its owner since we looked.
		return false
	}
	if r.first.pid != pid || r.first.start != start {
		r.first = sighting{pid: pid, start: start, seq: r.seq}
		return false
	}
	for seq := range r.starts {
		if seq <= r.first.seq {
			return false
		}
	}
	r.first = sighting{}
	r.reaped++
	return true
}

// peek returns the pid of a dead child and leaves it uncollected; 0 is none.
func peek() (int, error) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		switch {
		case err == nil:
			return siginfoPid(&info), nil
		case errors.Is(err, unix.ECHILD):
			return 0, nil
		case errors.Is(err, unix.EINTR):
		default:
			return 0, os.NewSyscallError("waitid", err)
		}
	}
}
