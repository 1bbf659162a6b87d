// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/bus/procstat"
)

// The model of a host: a fake sysfs and /proc, and a ksmd that follows what is written there as the kernel's does
// (mm/ksm.c): a page is merged with a stable one at its first visit, with another fresh one when it has not changed between two
// visits, and with smart_scan one that never merges is passed over more and more often.

const (
	// modelCost is the processor time of one look: far more than the kernel's, so that full speed is few looks to compute.
	modelCost = 200 * time.Microsecond
	skipCost  = modelCost / 20
)

// modelPage is a page of a process.
type modelPage struct {
	content  uint64
	volatile time.Duration // how often it changes; 0: never
	changed  time.Time
	checksum uint64
	stable   bool // merged: it has joined a stable page
	unshared bool // noted as one that did not change, and has no like so far
	known    bool // ksmd has been there, and keeps a note of it
	seen     bool
	age      int
	skips    int
}

type modelVM struct {
	pid   int
	pages []modelPage
}

// model is a host and its clock.
type model struct {
	t     testing.TB
	sysfs string
	proc  string
	at    time.Time
	rand  *rand.Rand
	next  uint64 // content that no other page has

	vms      []*modelVM
	cursorVM int
	cursor   int
	stable   map[uint64]int // content of merged pages, and how many have it
	unstable map[uint64]*modelPage
	cpu      time.Duration
	scanned  int64
	scans    int64
	began    time.Time // of this pass
	skipped  int64
	knobs    knobs
}

const ksmdPid = 42

func newModel(t testing.TB, host knobs) *model {
	m := &model{
		t: t, sysfs: filepath.Join(t.TempDir(), "ksm"), proc: filepath.Join(t.TempDir(), "proc"), at: time.Unix(1e9, 0),
		rand: rand.New(rand.NewPCG(1, 2)), next: 1 << 32, stable: map[uint64]int{}, unstable: map[uint64]*modelPage{},
		knobs: knobs{},
	}
	for name, value := range map[string]string{
		knobRun: "0", knobPages: "100", knobSleep: "20", knobSmartScan: "1", knobAdvisor: "[none] scan-time",
		knobAdvisorCPU: "70", knobAdvisorMin: "500", knobAdvisorMax: "30000", knobAdvisorFor: "200",
	} {
		if own, ok := host[name]; ok {
			value = own
		}
		m.write(m.sysfs, name, value)
	}
	m.write(m.proc, "meminfo", "MemTotal: 25000000 kB\nMemAvailable: 24000000 kB\nAnonPages: 2000000 kB\n")
	m.write(m.proc, "pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
	m.write(m.proc, fmt.Sprint(ksmdPid, "/comm"), "ksmd\n")
	m.show()
	return m
}

func (m *model) write(dir, name, value string) {
	m.t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// start adds a VM: most of its memory is what every VM has, a part is its own, a part never rests.
func (m *model) start(pid, pages int) *modelVM {
	v := &modelVM{pid: pid}
	for i := range pages {
		p := modelPage{content: uint64(i), changed: m.at}
		switch r := m.rand.Float64(); {
		case r < 0.25: // its own
			m.next++
			p.content = m.next
		case r < 0.35: // never rests
			p.volatile = time.Duration(1+m.rand.IntN(20)) * time.Second
		case r < 0.45: // settles after the boot
			m.next++
			p.content, p.volatile = m.next, -time.Duration(5+m.rand.IntN(20))*time.Second
		}
		v.pages = append(v.pages, p)
	}
	m.vms = append(m.vms, v)
	m.write(m.proc, fmt.Sprint(pid, "/stat"), statLine("qemu", 0, uint64(pid)))
	m.write(m.proc, fmt.Sprint(pid, "/ksm_merging_pages"), "0")
	m.write(m.proc, fmt.Sprint(pid, "/status"), fmt.Sprintf("RssAnon: %d kB", pages*int(pageSize>>10)))
	return v
}

func statLine(name string, cpu time.Duration, start uint64) string {
	return fmt.Sprintf("1 (%s) S 2 0 0 0 -1 0 0 0 0 0 0 %d 0 0 20 0 1 0 %d 0 0", name, cpu/procstat.Tick, start)
}

func (m *model) stop(v *modelVM) {
	for i := range v.pages {
		if v.pages[i].stable {
			m.leave(v.pages[i].content)
		}
	}
	for i, other := range m.vms {
		if other == v {
			m.vms = append(m.vms[:i], m.vms[i+1:]...)
			if m.cursorVM > i {
				m.cursorVM--
			} else if m.cursorVM == i {
				m.cursor = 0
			}
			break
		}
	}
	clear(m.unstable)
	os.RemoveAll(filepath.Join(m.proc, strconv.Itoa(v.pid)))
}

func (m *model) leave(content uint64) {
	if m.stable[content]--; m.stable[content] == 0 {
		delete(m.stable, content)
	}
}

// merged is what sharing saves, in pages.
func (m *model) merged() int64 {
	var n int64
	for _, users := range m.stable {
		n += int64(users - 1)
	}
	return n
}

// run lets the host live for d, in steps of the kernel's sleep.
func (m *model) run(d time.Duration) {
	end := m.at.Add(d)
	m.load()
	run, pages, sleep := m.knobs[knobRun], int(parse(m.knobs[knobPages])), time.Duration(parse(m.knobs[knobSleep]))*time.Millisecond
	for m.at.Before(end) {
		m.age()
		if run != "1" || len(m.vms) == 0 {
			m.at = end
			break
		}
		took := m.batch(min(pages, 5000)) // a long batch in pieces, so that the clock moves with it
		rest := sleep
		if pages > 5000 {
			rest = sleep * 5000 / time.Duration(pages)
		}
		m.at = m.at.Add(took + rest)
	}
	m.show()
}

// age changes the pages that never rest.
func (m *model) age() {
	for _, v := range m.vms {
		for i := range v.pages {
			p := &v.pages[i]
			switch {
			case p.volatile > 0 && m.at.Sub(p.changed) > p.volatile:
				m.next++
				m.change(p, m.next)
			case p.volatile < 0 && m.at.Sub(p.changed) > -p.volatile:
				m.change(p, uint64(i)) // as every VM's, now that it has booted
				p.volatile = 0
			}
		}
	}
}

func (m *model) change(p *modelPage, content uint64) {
	if p.stable {
		m.leave(p.content)
		p.stable = false
	}
	p.content, p.changed, p.age, p.skips = content, m.at, 0, 0
}

// batch looks at n pages and returns the processor time.
func (m *model) batch(n int) (took time.Duration) {
	for range n {
		if m.cursorVM >= len(m.vms) {
			m.endPass()
		}
		v := m.vms[m.cursorVM]
		took += m.visit(&v.pages[m.cursor])
		m.scanned++
		if m.cursor++; m.cursor == len(v.pages) {
			m.cursor, m.cursorVM = 0, m.cursorVM+1
		}
	}
	m.cpu += took
	return took
}

func (m *model) endPass() {
	m.cursorVM, m.cursor = 0, 0
	m.scans++
	clear(m.unstable)
	if m.knobs[knobAdvisor] == advisorScanTime { // scan_time_advisor()
		target := parse(m.knobs[knobAdvisorFor])
		took := max(1, m.at.Sub(m.began).Seconds())
		pages := parse(m.knobs[knobPages]) * took / target
		pages = min(max(pages, parse(m.knobs[knobAdvisorMin])), parse(m.knobs[knobAdvisorMax]))
		m.knobs[knobPages] = number(int64(pages))
		m.write(m.sysfs, knobPages, m.knobs[knobPages])
	}
	m.began = m.at
}

func (m *model) visit(p *modelPage) time.Duration {
	p.known = true
	if p.stable {
		return modelCost / 4
	}
	p.unshared = false // also when it is passed over
	if m.knobs[knobSmartScan] == "1" {
		p.age++
		if p.age > 3 {
			if p.skips > 0 {
				p.skips--
				m.skipped++
				return skipCost
			}
			p.skips = skipsAt(p.age)
		}
	}
	if m.stable[p.content] > 0 {
		p.stable = true
		m.stable[p.content]++
		return modelCost
	}
	if !p.seen || p.checksum != p.content {
		p.seen, p.checksum = true, p.content
		return modelCost
	}
	if other := m.unstable[p.content]; other != nil && other != p && other.content == p.content {
		p.stable, other.stable, other.unshared = true, true, false
		m.stable[p.content] = 2
		delete(m.unstable, p.content)
	} else {
		m.unstable[p.content], p.unshared = p, true
	}
	return modelCost
}

func skipsAt(age int) int {
	switch {
	case age <= 4:
		return 1
	case age <= 5:
		return 2
	case age <= 8:
		return 4
	}
	return 8
}

// load reads what was written to the kernel.
func (m *model) load() {
	for _, name := range knobNames() {
		raw, err := os.ReadFile(filepath.Join(m.sysfs, name))
		if err != nil {
			m.t.Fatal(err)
		}
		value := strings.TrimSpace(string(raw))
		if _, after, found := strings.Cut(value, "["); found {
			value, _, _ = strings.Cut(after, "]")
		}
		if name == knobAdvisor && value != m.knobs[name] && value == advisorScanTime {
			m.knobs[knobPages] = m.knobs[knobAdvisorMin]
			m.write(m.sysfs, knobPages, m.knobs[knobPages])
		}
		m.knobs[name] = value
	}
	if m.knobs[knobAdvisor] == advisorScanTime {
		raw, _ := os.ReadFile(filepath.Join(m.sysfs, knobPages))
		m.knobs[knobPages] = strings.TrimSpace(string(raw))
	}
}

// noteSize is what a note of a page takes: sizeof(struct ksm_rmap_item).
const noteSize = 64

// show writes the counters, as the kernel computes them: a page that is volatile is any that it has a note of and that
// is neither merged nor waits for its like; profit is what merging saves less the notes (Documentation/admin-guide/mm/ksm.rst).
func (m *model) show() {
	users := int64(0)
	for _, n := range m.stable {
		users += int64(n)
	}
	notes, unshared := int64(0), int64(0)
	for _, v := range m.vms {
		for i := range v.pages {
			if v.pages[i].known {
				notes++
			}
			if v.pages[i].unshared {
				unshared++
			}
		}
	}
	sharing := users - int64(len(m.stable))
	for name, value := range map[string]int64{
		"pages_shared": int64(len(m.stable)), "pages_sharing": sharing, "pages_unshared": unshared, "pages_volatile": notes - users - unshared,
		"pages_skipped": m.skipped, "pages_scanned": m.scanned, "full_scans": m.scans, "ksm_zero_pages": 0, "general_profit": sharing*pageSize - notes*noteSize,
	} {
		m.write(m.sysfs, name, number(value))
	}
	m.write(m.proc, fmt.Sprint(ksmdPid, "/stat"), statLine("ksmd", m.cpu, 1))
}
