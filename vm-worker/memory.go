// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
)

const (
	// guestsAtOnce bounds the guests that are asked at a time.
	guestsAtOnce = 8
	// guestTime bounds what one guest may hold up the sum of all.
	guestTime = 2 * time.Second
)

// memoryOfAll is what every VM costs, and the sum. With more VMs than one answer holds, the first
// has the sum of all, and those that follow look only at the VMs that are still to be told of.
func (w *Worker) memoryOfAll(ctx context.Context, after string) (*vmv1.StatsReply, error) {
	running := slices.DeleteFunc(w.sandboxList(), func(s *sandbox) bool { return s.living() == nil || s.id <= after })
	slices.SortFunc(running, func(a, b *sandbox) int { return strings.Compare(a.id, b.id) })
	all := make([]*vmv1.VMMemory, len(running))
	guests, cancel := halfOf(ctx)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(guestsAtOnce)
	for i, s := range running {
		group.Go(func() error {
			m, err := s.memory()
			if err != nil {
				return nil // it has ended meanwhile
			}
			asking, cancel := context.WithTimeout(guests, guestTime)
			defer cancel()
			if guest, err := callAgent[agentv1.StatsReply](asking, s, "stats", &agentv1.StatsRequest{}); err == nil {
				setGuest(m, guest, s.mostMemory())
			}
			all[i] = m
			return nil
		})
	}
	_ = group.Wait() // none fails
	reply := tellMemory(all, after == "")
	if after == "" {
		reply.Stock = w.stock.memory()
	}
	host, err := readFields("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	reply.HostTotalBytes, reply.HostAvailableBytes = host["MemTotal"], host["MemAvailable"]
	return reply, nil
}

// halfOf ends when half of the caller's time is over: guests that hang, however many, leave
// the rest for what the host knows.
func halfOf(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, limited := ctx.Deadline()
	if !limited {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}

// tellMemory tells of as many VMs as one answer holds, and of the sum of all. Those that have ended are nil.
func tellMemory(all []*vmv1.VMMemory, sum bool) *vmv1.StatsReply {
	reply, part := &vmv1.StatsReply{}, bus.Part{}
	total := &vmv1.VMMemory{Sandbox: "total"}
	for _, m := range all {
		switch {
		case m == nil:
			continue
		case reply.Next == "" && part.Holds(m):
			reply.Vms = append(reply.Vms, m)
		case reply.Next == "":
			reply.Next = reply.Vms[len(reply.Vms)-1].Sandbox
		}
		addMemory(total, m)
	}
	if sum {
		reply.Total = total
	}
	return reply
}

// memory is what the sandbox's VM costs, as the host sees it.
func (s *sandbox) memory() (*vmv1.VMMemory, error) {
	rec := s.record()
	m := &vmv1.VMMemory{Sandbox: s.id, Pid: rec.Pid, TrustClass: rec.TrustClass, Mergeable: rec.Mergeable}
	dir := "/proc/" + strconv.Itoa(int(rec.Pid))
	sum, err := readFields(dir + "/smaps_rollup")
	if err != nil {
		return nil, err
	}
	m.RssBytes, m.PssBytes, m.PrivateBytes = sum["Rss"], sum["Pss"], sum["Private_Clean"]+sum["Private_Dirty"]+sum["Private_Hugetlb"]
	m.AnonymousBytes, m.AnonymousPssBytes = sum["Anonymous"], sum["Pss_Anon"]
	if !s.spare() {
		if m.ChargedBytes, err = hostcgroup.AnonymousOf(int(rec.Pid)); err != nil {
			s.w.log.Debug("memory of a cgroup not read", "sandbox", s.id, "error", err) // a host without that controller
		}
	}
	status, err := readFields(dir + "/status")
	if err != nil {
		return nil, err
	}
	m.PageTablesBytes = status["VmPTE"]
	m.KsmMergedBytes, m.KsmSavedBytes = mergedByKSM(dir)
	if m.TemplateSharedBytes, err = templateShared(dir); err != nil {
		return nil, err
	}
	for _, c := range s.memberList() {
		rec := c.snapshot()
		m.Containers = append(m.Containers, rec.Ref.GetId())
		pids := []int32{rec.Relay.GetPid()}
		for _, x := range rec.Execs {
			pids = append(pids, x.Relay.GetPid())
		}
		for _, pid := range pids {
			if relay, err := readFields(fmt.Sprintf("/proc/%d/smaps_rollup", pid)); err == nil {
				m.RelaysPssBytes += relay["Pss"]
			}
		}
	}
	slices.Sort(m.Containers)
	m.CostBytes = m.PssBytes + m.PageTablesBytes + m.RelaysPssBytes
	return m, nil
}

// memory is what stands ready for all VMs.
func (k *stock) memory() *vmv1.StockMemory {
	m := &vmv1.StockMemory{}
	for _, t := range k.templates.describe() {
		m.TemplatesBytes += t.Bytes
		if t.Pid == 0 {
			continue
		}
		if zygote, err := readFields(fmt.Sprintf("/proc/%d/smaps_rollup", t.Pid)); err == nil { // else it has ended meanwhile
			m.ZygotesPssBytes += zygote["Pss"]
			m.ZygotesAnonymousPssBytes += zygote["Pss_Anon"]
		}
	}
	charged, err := k.cgroups.anonymous()
	if err != nil {
		k.w.log.Debug("memory of the pool's cgroup not read", "error", err)
	}
	m.ChargedBytes = charged
	return m
}

// mergedByKSM is what KSM has merged of a process, and what that saves: of the pages that all processes have merged,
// this one has a part of those that are left.
func mergedByKSM(dir string) (merged, saved uint64) {
	pages := readNumber(dir + "/ksm_merging_pages")
	sharing, shared := readNumber("/sys/kernel/mm/ksm/pages_sharing"), readNumber("/sys/kernel/mm/ksm/pages_shared")
	merged = pages * uint64(os.Getpagesize())
	if sharing+shared > 0 {
		saved = uint64(float64(merged) * float64(sharing) / float64(sharing+shared))
	}
	return merged, saved
}

// readNumber reads a file of one number; what is not there is 0.
func readNumber(path string) uint64 {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// templateShared is what a clone still has of its template: of private, writable mappings of a file, as guest memory
// is where it comes from a template, the pages that are the file's.
func templateShared(dir string) (uint64, error) {
	raw, err := os.ReadFile(dir + "/smaps")
	if err != nil {
		return 0, fmt.Errorf("read the memory of a VM: %w", err)
	}
	var shared, rss uint64
	ofFile := false // the mapping is a file's, private and writable
	for line := range strings.Lines(string(raw)) {
		words := strings.Fields(line)
		switch {
		case len(words) >= 5 && strings.Contains(words[0], "-"): // "start-end rw-p offset device inode path"
			ofFile = words[1] == "rw-p" && words[4] != "0" && !strings.Contains(line, ".so")
		case ofFile && words[0] == "Size:":
			ofFile = kib(words) >= leastGuest // the guest's kernel is mapped so as well, while it is loaded
		case ofFile && words[0] == "Rss:":
			rss = kib(words)
		case ofFile && words[0] == "Anonymous:":
			shared += rss - min(rss, kib(words))
		}
	}
	return shared, nil
}

// leastGuest is less than any guest has for its memory.
const leastGuest = 32 << 20

func kib(words []string) uint64 {
	n, err := strconv.ParseUint(words[1], 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}

// readFields reads a file in /proc of lines "name: value kB", in bytes.
func readFields(path string) (map[string]uint64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("memory of a process: %w", err)
	}
	all := map[string]uint64{}
	for line := range strings.Lines(string(raw)) {
		name, _, _ := strings.Cut(line, ":")
		if words := strings.Fields(line); len(words) == 3 && words[2] == "kB" {
			all[name] = kib(words)
		}
	}
	return all, nil
}

// mostMemory is what the guest may have at any moment. What it grows by comes in whole steps.
func (s *sandbox) mostMemory() uint64 {
	rec := s.record()
	return max(rec.MemoryBytes, rec.MemoryLimitBytes+growthStep)
}

// setGuest adds what the guest says of itself, as far as that can be: it goes into sums.
func setGuest(m *vmv1.VMMemory, guest *agentv1.StatsReply, most uint64) {
	m.GuestTotalBytes = min(guest.GuestTotalBytes, most)
	m.GuestAvailableBytes = min(guest.GuestAvailableBytes, m.GuestTotalBytes)
	m.GuestUsedBytes = m.GuestTotalBytes - m.GuestAvailableBytes
}

// addMemory adds the numbers of a VM to a sum.
func addMemory(sum, m *vmv1.VMMemory) {
	for _, n := range []struct {
		to   *uint64
		more uint64
	}{
		{&sum.CostBytes, m.CostBytes}, {&sum.RssBytes, m.RssBytes}, {&sum.PssBytes, m.PssBytes}, {&sum.PrivateBytes, m.PrivateBytes},
		{&sum.TemplateSharedBytes, m.TemplateSharedBytes}, {&sum.KsmMergedBytes, m.KsmMergedBytes}, {&sum.KsmSavedBytes, m.KsmSavedBytes},
		{&sum.AnonymousBytes, m.AnonymousBytes}, {&sum.AnonymousPssBytes, m.AnonymousPssBytes}, {&sum.ChargedBytes, m.ChargedBytes}, {&sum.PageTablesBytes, m.PageTablesBytes}, {&sum.RelaysPssBytes, m.RelaysPssBytes},
		{&sum.GuestTotalBytes, m.GuestTotalBytes}, {&sum.GuestAvailableBytes, m.GuestAvailableBytes}, {&sum.GuestUsedBytes, m.GuestUsedBytes},
	} {
		*n.to += n.more
	}
}
