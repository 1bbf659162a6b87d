// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// guest is a governor of a machine that consists of files.
type guest struct {
	*Governor
	t      *testing.T
	wants  []uint64
	newest uint64
}

// newGuest is one of 128 MiB that may become one of 512, and whose containers have used it up.
func newGuest(t *testing.T) *guest {
	t.Helper()
	dir := t.TempDir()
	g := &guest{t: t}
	proc, cgroup := filepath.Join(dir, "proc"), filepath.Join(dir, "cgroup")
	err := errors.Join(os.MkdirAll(filepath.Join(proc, "sys/vm"), 0o755), os.Mkdir(cgroup, 0o755),
		os.WriteFile(filepath.Join(proc, "meminfo"), []byte("MemTotal: 110000 kB\nMemFree: 9000 kB\n"), 0o600),
		os.WriteFile(filepath.Join(cgroup, "memory.current"), []byte("70000000\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	g.Governor, err = New(Config{Log: hclog.NewNullLogger(), Dir: cgroup, Proc: proc, Ask: func(bytes, number uint64) { g.wants, g.newest = append(g.wants, bytes), number }})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Set(machineOf(128*mib), 0); err != nil {
		t.Fatal(err)
	}
	return g
}

func machineOf(has uint64) Machine {
	return Machine{Has: has, Limit: 512 * mib, Containers: 416 * mib, Base: 128 * mib}
}

// ago is what a time was, had it been that much earlier.
func ago(at *time.Time, d time.Duration) { *at = at.Add(-d) }

func (g *guest) expectWait(when string, want time.Duration) {
	g.t.Helper()
	if got := g.group.number("memory.max.wait"); got != uint64(want/time.Millisecond) {
		g.t.Errorf("%s a charge at the border waits %d ms, not %v", when, got, want)
	}
}

// TestNobodyWaitsForAHostThatDoesNotAnswer but those who did when it fell silent: containers that live on cached files go
// on without a worker. When it is back, it is asked still.
func TestNobodyWaitsForAHostThatDoesNotAnswer(t *testing.T) {
	g := newGuest(t)
	g.expectWait("at first", waitTime)
	g.reached()
	g.look()
	g.expectWait("while the host is asked", waitTime)
	ago(&g.since, waitTime)
	g.look()
	g.expectWait("when the host does not answer", 0)
	g.reached() // as often as they like
	g.expectWait("when the host does not answer", 0)
	if last := g.wants[len(g.wants)-1]; len(g.wants) < 3 || last != 256*mib {
		t.Errorf("the host was asked for %v", g.wants)
	}
	if err := g.Set(machineOf(256*mib), g.newest); err != nil {
		t.Fatal(err)
	}
	g.expectWait("when the host has answered", waitTime)
}

// TestWhoNeedsLessMeanwhileMayWaitAgain, also for a host that has been silent.
func TestWhoNeedsLessMeanwhileMayWaitAgain(t *testing.T) {
	g := newGuest(t)
	g.reached()
	ago(&g.since, waitTime)
	g.look()
	g.expectWait("when the host does not answer", 0)
	if err := os.WriteFile(filepath.Join(g.cfg.Dir, "memory.current"), []byte(strconv.Itoa(10*mib)), 0o600); err != nil {
		t.Fatal(err)
	}
	g.look()
	g.expectWait("when nobody is at the border", waitTime)
}

// TestARefusalHoldsLongerEachTime, so that a host without memory does not have containers wait most of their time.
func TestARefusalHoldsLongerEachTime(t *testing.T) {
	g := newGuest(t)
	refuse := func() time.Duration {
		t.Helper()
		g.reached()
		if err := g.Refused(machineOf(128*mib), g.newest); err != nil {
			t.Fatal(err)
		}
		g.expectWait("when the host has refused", 0)
		hold := g.hold
		ago(&g.refused, hold)
		g.look()
		g.expectWait("when the refusal is over", waitTime)
		return hold
	}
	for i, want := range []time.Duration{2, 4, 8, 16, 30, 30} {
		if got := refuse(); got != want*time.Second {
			t.Errorf("refusal %d holds %v", i+1, got)
		}
	}
	if err := g.Set(machineOf(256*mib), g.newest); err != nil {
		t.Fatal(err)
	}
	if got := refuse(); got != refusedTime {
		t.Errorf("after the host has given memory, a refusal holds %v", got)
	}
}
