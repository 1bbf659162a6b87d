// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"bulkhead/bus/procstat"
	ksmv1 "bulkhead/proto/ksm/v1"
)

// pageSize is that of the kernel's counters.
var pageSize = int64(os.Getpagesize())

// proc reads /proc.
type proc struct {
	dir  string
	ksmd int // pid of the kernel's thread; 0: not found yet, or not to be seen from this PID namespace
}

// ksmdCPU is the processor time that the kernel's thread has used. ok is false where it cannot be seen.
func (p *proc) ksmdCPU() (used time.Duration, ok bool) {
	if p.ksmd == 0 {
		p.ksmd = p.find("ksmd")
	}
	s, err := procstat.Read(p.dir, p.ksmd)
	if err != nil || s.Name != "ksmd" {
		p.ksmd = -1 // kernel threads do not come and go
		return 0, false
	}
	return s.CPU, true
}

// find looks for a kernel thread: a child of kthreadd, whose pid is 2.
func (p *proc) find(name string) int {
	all, err := os.ReadDir(p.dir)
	if err != nil {
		return -1
	}
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(p.dir, e.Name(), "comm"))
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		// A process may call itself so as well, but it has a program.
		if _, err := os.Readlink(filepath.Join(p.dir, e.Name(), "exe")); err != nil {
			return pid
		}
	}
	return -1
}

// memory is what the host says of its memory.
type memory struct {
	total, available int64 // bytes
	anonPages        int64 // pages
	stalled          float64
}

// stallHigh is the share of time, in percent, that some task waits for memory from which on memory counts as short.
const stallHigh = 10.0

func (p *proc) memory() (m memory, err error) {
	raw, err := os.ReadFile(filepath.Join(p.dir, "meminfo"))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(raw)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil {
			continue
		}
		switch words[0] {
		case "MemTotal:":
			m.total = kib << 10
		case "MemAvailable:":
			m.available = kib << 10
		case "AnonPages:":
			m.anonPages = kib << 10 / pageSize
		}
	}
	if m.total == 0 {
		return m, errors.New("/proc/meminfo has no MemTotal")
	}
	m.stalled = p.stalled()
	return m, nil
}

// stalled is avg10 of /proc/pressure/memory (PSI); 0 on kernels without.
func (p *proc) stalled() float64 {
	raw, err := os.ReadFile(filepath.Join(p.dir, "pressure", "memory"))
	if err != nil {
		return 0
	}
	for _, word := range strings.Fields(string(raw)) { // "some avg10=0.00 …" comes first
		if text, ok := strings.CutPrefix(word, "avg10="); ok {
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return 0
			}
			return v
		}
	}
	return 0
}

// The shares of free memory between which pressure goes from 0 to 1.
const (
	plenty = 0.40
	scarce = 0.10
)

// pressure is how much memory is wanted, from 0 to 1.
func (m memory) pressure() float64 {
	free := float64(m.available) / float64(m.total)
	short := (plenty - free) / (plenty - scarce)
	return min(1, max(0, short, m.stalled/stallHigh))
}

// merging is what the kernel says of one process (Documentation/filesystems/proc.rst).
type merging struct {
	pages, zero int64
	profit      int64 // bytes
}

func (p *proc) merging(pid int) (m merging, err error) {
	dir := filepath.Join(p.dir, strconv.Itoa(pid))
	raw, err := os.ReadFile(filepath.Join(dir, "ksm_merging_pages"))
	if err != nil {
		return m, err
	}
	if m.pages, err = strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err != nil {
		return m, fmt.Errorf("/proc/%d/ksm_merging_pages: %w", pid, err)
	}
	for name, value := range p.pairs(filepath.Join(dir, "ksm_stat")) {
		switch name {
		case "ksm_zero_pages":
			m.zero = value
		case "ksm_process_profit":
			m.profit = value
		}
	}
	return m, nil
}

// pairs reads lines of a name and a number; a file that is not there has none.
func (p *proc) pairs(path string) map[string]int64 {
	all := map[string]int64{}
	raw, err := os.ReadFile(path)
	if err != nil {
		return all
	}
	for line := range strings.Lines(string(raw)) {
		if words := strings.Fields(line); len(words) >= 2 {
			if v, err := strconv.ParseInt(words[1], 10, 64); err == nil {
				all[words[0]] = v
			}
		}
	}
	return all
}

// vm is a VM whose memory may be merged.
type vm struct {
	sandbox string
	pid     int
	start   uint64
}

// report says what merging does for a VM; nil: it has ended. Of what the host saves it has the part that it has of what is merged.
func (p *proc) report(v vm, k *ksmv1.KernelState) *ksmv1.VM {
	if s, err := procstat.Read(p.dir, v.pid); err != nil || s.Start != v.start {
		return nil
	}
	m, err := p.merging(v.pid)
	if err != nil {
		return nil
	}
	saving := 0.0
	if all := k.PagesSharing + k.PagesShared; all > 0 {
		saving = float64(k.PagesSharing) / float64(all)
	}
	return &ksmv1.VM{
		Sandbox: v.sandbox, Pid: int32(v.pid),
		MergedBytes: m.pages * pageSize,
		SavedBytes:  int64(float64(m.pages)*saving)*pageSize + m.zero*pageSize,
		ZeroBytes:   m.zero * pageSize, ProfitBytes: m.profit,
	}
}

// anonymous is the pages of VMs that can be merged at most.
func (p *proc) anonymous(vms []vm) int64 {
	var bytes int64
	for _, v := range vms {
		bytes += p.pairs(filepath.Join(p.dir, strconv.Itoa(v.pid), "status"))["RssAnon:"] << 10
	}
	return bytes / pageSize
}
