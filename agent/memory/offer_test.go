// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// offers is a guest of 384 MiB whose containers use almost nothing, and which has said so.
func offers(t *testing.T) *guest {
	t.Helper()
	g := newGuest(t)
	err := errors.Join(g.Set(machineOf(384*mib), 0),
		os.WriteFile(filepath.Join(g.cfg.Proc, "meminfo"), []byte("MemTotal: 370000 kB\nMemFree: 330000 kB\n"), 0o600),
		os.WriteFile(filepath.Join(g.cfg.Dir, "memory.current"), []byte("10000000\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	g.Trim()
	if len(g.wants) != 1 || g.wants[0] != 128*mib || g.offer != g.newest {
		t.Fatalf("a machine that is not used offers %v", g.wants)
	}
	return g
}

// border is what the containers may use beside what they do.
func (g *guest) room() uint64 { return g.group.number("memory.max") - g.group.number("memory.current") }

// TestTheHostTakesOnlyWhatIsStillOffered: the containers that need it first have it, and the host is told so.
func TestTheHostTakesOnlyWhatIsStillOffered(t *testing.T) {
	g := offers(t)
	if g.room() > 100*mib {
		t.Errorf("what is offered may be taken meanwhile: %d MiB", g.room()>>20)
	}
	if !g.Agree(g.newest) || g.Agree(g.newest+1) || g.Agree(g.newest-1) {
		t.Error("what is offered may be taken by the number of that wish only")
	}
	number := g.newest
	g.reached() // the border, which is too low now
	if g.newest != number+1 {
		t.Fatalf("who needs more than is left says %v", g.wants)
	}
	if g.Agree(number) {
		t.Error("what the containers wait for may be taken")
	}
	if g.room() < 250*mib {
		t.Errorf("what is not given away is not the containers': %d MiB", g.room()>>20)
	}
}

// TestWhatTheHostMayBeTakingIsNobodysUntilItHasAnswered that wish or a newer one; older answers do not count.
func TestWhatTheHostMayBeTakingIsNobodysUntilItHasAnswered(t *testing.T) {
	g := offers(t)
	offer := g.newest
	if !g.Agree(offer) {
		t.Fatal("what is offered may not be taken")
	}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"an answer to an older wish", func() error { return g.Set(machineOf(384*mib), offer-1) }},
		{"a change of something else", func() error { return g.Set(machineOf(384*mib), 0) }},
		{"a refusal of an older wish", func() error { return g.Refused(machineOf(384*mib), offer-1) }},
		{"the wish of others", func() error { g.Trim(); return nil }},
		{"a need", func() error { g.reached(); return nil }},
		{"a need that is over", func() error { g.look(); return nil }},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if g.offered != 128*mib || g.room() > 100*mib {
			t.Fatalf("after %s the containers may use what the host is taking", c.what)
		}
	}
	if err := g.Set(machineOf(384*mib), offer); err != nil {
		t.Fatal(err)
	}
	if g.offered != 0 || g.room() < 250*mib {
		t.Error("what the host has not taken is not the containers' again")
	}
}

// TestAHostThatDiesWhileItTakesMemoryIsNotBelieved: what the machine had before is not what it has, neither for what is still about to
// go, nor when the containers need it and it cannot go.
func TestAHostThatDiesWhileItTakesMemoryIsNotBelieved(t *testing.T) {
	g := offers(t)
	if !g.Agree(g.newest) {
		t.Fatal("what is offered may not be taken")
	}
	if err := os.WriteFile(filepath.Join(g.cfg.Proc, "meminfo"), []byte("MemTotal: 116000 kB\nMemFree: 90000 kB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !g.Agree(g.newest) { // the next one asks anew
		t.Error("what is nearly gone may not be taken any more")
	}
	if room := g.room() >> 20; room < 40 || room > 80 {
		t.Errorf("the containers may use %d MiB more, of some 70 that are free", room)
	}
	g.reached()
	g.Agree(g.offer)
	g.expectWait("while a need is told of", waitTime)
	if room := g.room() >> 20; room < 40 || room > 80 {
		t.Errorf("the containers may use %d MiB more, of some 70 that are free", room)
	}
}

// TestWhoMeetsTheBorderAfterADeathOfTheHostIsNotForgotten: the host dies when it has taken all but little, the containers need
// it, and the next host has not told yet what is left. What it had before is not believed: a charge that nobody asks for is killed.
func TestWhoMeetsTheBorderAfterADeathOfTheHostIsNotForgotten(t *testing.T) {
	for _, c := range []struct {
		what string
		need func(g *guest) // about when the next host asks for consent
	}{
		{"before the next host asks", func(g *guest) { g.reached(); g.reached(); g.Agree(g.offer) }},
		{"when it was told that the kernel needs what was offered", func(g *guest) {
			g.put(g.cfg.Proc, "meminfo", "MemTotal: 116000 kB\nMemFree: 1000 kB\n")
			g.put(g.cfg.Dir, "memory.current", "99000000\n")
			g.Agree(g.offer)
			g.reached()
		}},
	} {
		g := offers(t)
		if err := g.Set(machineOf(512*mib), 0); err != nil { // all that it may have
			t.Fatal(err)
		}
		if !g.Agree(g.newest) {
			t.Fatal("what is offered may not be taken")
		}
		g.put(g.cfg.Proc, "meminfo", "MemTotal: 116000 kB\nMemFree: 15000 kB\n") // 6 MiB are still to go
		g.put(g.cfg.Dir, "memory.current", "80000000\n")
		offer := g.offer
		c.need(g)
		if err := g.Set(machineOf(134*mib), offer); err != nil {
			t.Fatal(err)
		}
		if last := g.wants[len(g.wants)-1]; g.asked == 0 || last < 256*mib || g.offered != 0 {
			t.Errorf("%s: the host was asked for %v, and is for %d MiB", c.what, g.wants, g.asked>>20)
		}
		g.expectWait(c.what, waitTime)
	}
}

// TestMemoryThatComesAfterTheHostsWordIsUsed: the last of it, too, for which nobody asks any more.
func TestMemoryThatComesAfterTheHostsWordIsUsed(t *testing.T) {
	g := newGuest(t)
	g.reached()
	if err := g.Set(machineOf(512*mib), g.newest); err != nil { // the kernel has not brought it up yet
		t.Fatal(err)
	}
	if next := g.next(); next != askAgain {
		t.Errorf("the border is looked at again in %v", next)
	}
	g.put(g.cfg.Proc, "meminfo", "MemTotal: 503216 kB\nMemFree: 402216 kB\n")
	g.look()
	if g.room() < 300*mib || g.hungry {
		t.Errorf("the containers may use %d MiB more, of 393 that have come", g.room()>>20)
	}
	if len(g.wants) != 1 {
		t.Errorf("the host was asked for %v", g.wants)
	}
}

// put makes a file say something else.
func (g *guest) put(dir, name, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}
