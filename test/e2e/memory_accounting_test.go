// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/test/e2e/host"
)

// tolerance is how far the sums of vm.stats may be from the host's own.
const tolerance = 0.05

// TestWhatVMsCostIsWhatTheHostMisses: what vm.stats says of VMs, against the kernel's sum for each process, against what cgroups
// are charged, against the pages of the host's memory that these processes have, each counted once, and against what the host
// has more of anonymous memory (AnonPages of /proc/meminfo, less that of other processes: MemAvailable also moves with the host's
// caches). Only the last moves with what others do, so it is taken many times, with VMs and without, in turns.
// Not parallel: other tests' daemons make VMs meanwhile.
func TestWhatVMsCostIsWhatTheHostMisses(t *testing.T) {
	t.Run("VMs that boot", func(t *testing.T) { costs(t, "cost-boot", host.Settings{Boot: true}) })
	t.Run("clones", func(t *testing.T) { costs(t, "cost-clone", host.Settings{NoPool: true}) })
	t.Run("clones of the pool", func(t *testing.T) { costs(t, "cost-pool", host.Settings{}) })
}

// statsOfAll is what the host tells of the memory of VMs.
func statsOfAll(t *testing.T, conn *bus.Conn) *vmv1.StatsReply {
	t.Helper()
	reply, err := bus.Call[vmv1.StatsReply](within(t, commandTime), conn, conn.Subject("vm", "stats"), &vmv1.StatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// anonymousTold is the memory of no file that vm.stats tells of, each page once.
func anonymousTold(reply *vmv1.StatsReply) uint64 {
	return reply.GetTotal().GetAnonymousPssBytes() + reply.GetTotal().GetRelaysPssBytes() + reply.GetStock().GetZygotesAnonymousPssBytes()
}

func costs(t *testing.T, name string, settings host.Settings) {
	h := newHost(t, name, settings)
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, h)
	o := newOCI(t, h)
	conn := dial(t, o.host)
	settle := func() {}
	if !settings.Boot { // what stands ready is there before, and again after
		exits(t, o.launch(newID("first"), newSpec("true")), 0)
		settle = func() { awaitTemplate(t, conn) }
		if !settings.NoPool {
			settle = func() { awaitPool(t, conn, "") }
		}
	}
	const vms, rounds = 4, 5
	var apart []float64 // of each round, as a part of what is told
	for round := range rounds {
		settle()
		without, _ := untold(t, o, conn, nil)
		var ids []string
		for i := range vms {
			id := newID(fmt.Sprintf("cost-%d-%d", round, i))
			m := o.launch(id, newSpec("sh", "-c", "echo up; exec sleep 1000"))
			until(t, m, "up\n")
			ids = append(ids, id)
		}
		settle()
		// A guest gives back what its start has used, perhaps between two looks at it: the sums are true when they agree.
		must(t, commandTime, func() error { return agree(t, o, conn, ids, settings.Boot) })
		with, told := untold(t, o, conn, ids)
		for _, id := range ids {
			if !settings.Boot && fromTemplate(t, conn, o.root, id) == 0 {
				t.Errorf("the VM of %s is no clone", id)
			}
			o.do("delete", "--force", id)
		}
		// Of all that is told: forked VMs add little to what forks them.
		apart = append(apart, (with-without)/told)
		t.Logf("vm.stats tells of %.1f MB with %d VMs; of what the host has, %.1f MB are not told of then, and %.1f MB without them: %.1f %% apart",
			told/1e6, vms, with/1e6, without/1e6, 100*apart[round])
		if math.Abs(median(apart)) <= tolerance || t.Failed() {
			return
		}
	}
	// What vm.stats does not tell of is missing each time; what others take, now and then.
	if spread := slices.Max(apart) - slices.Min(apart); spread > tolerance {
		t.Logf("processes, cgroups and pages agree; others took and gave %.0f %% between the rounds, in which nothing of ours can be seen", 100*spread)
		return
	}
	t.Errorf("vm.stats and the host are %.1f %% apart, in each of %d rounds", 100*median(apart), rounds)
}

// agree complains unless vm.stats, the kernel's sums for processes and cgroups, and the pages of the host's memory agree.
func agree(t *testing.T, o ociUser, conn *bus.Conn, ids []string, booted bool) error {
	t.Helper()
	reply, table := statsOfAll(t, conn), o.do("stats")
	var wrong []error
	for _, id := range ids {
		_, err := checkVM(t, reply, id, table, booted)
		wrong = append(wrong, err)
	}
	return errors.Join(append(wrong, checkCharges(t, reply), checkPages(t, reply, toldOf(t, o, conn, reply, ids)))...)
}

// toldOf are the processes of which vm.stats tells: the VMs, their containers' relays, and what forks VMs.
func toldOf(t *testing.T, o ociUser, conn *bus.Conn, reply *vmv1.StatsReply, containers []string) (pids []int) {
	t.Helper()
	for _, m := range reply.GetVms() {
		pids = append(pids, int(m.GetPid()))
	}
	for _, id := range containers {
		pids = append(pids, o.state(id).Pid)
	}
	pool, err := poolOf(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, template := range pool.GetTemplates() {
		if template.GetPid() != 0 {
			pids = append(pids, int(template.GetPid()))
		}
	}
	return pids
}

// TestWhatAVMSharesWithItsTemplateIsNotItsOwn: the same for VMs that continue from a template.
func TestWhatAVMSharesWithItsTemplateIsNotItsOwn(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	conn := dial(t, o.host)
	awaitTemplate(t, conn)
	id := newID("shares")
	until(t, o.launch(id, newSpec("sh", "-c", "echo up; exec sleep 1000")), "up\n")
	if fromTemplate(t, conn, o.root, id) == 0 {
		t.Fatal("the VM does not continue from the template that is ready")
	}
	var m *vmv1.VMMemory
	must(t, commandTime, func() (err error) {
		m, err = checkVM(t, statsOfAll(t, conn), id, o.do("stats"), false)
		return err
	})
	if m.GetTemplateSharedBytes() == 0 || m.GetTemplateSharedBytes()+m.GetPrivateBytes() > m.GetRssBytes() {
		t.Errorf("%d bytes are shared with the template, %d are private, of %d", m.GetTemplateSharedBytes(), m.GetPrivateBytes(), m.GetRssBytes())
	}
	o.do("delete", "--force", id)
}

// checkVM holds what is said of one VM against the kernel and against itself. All that a VM which booted has is in its cgroup.
func checkVM(t *testing.T, reply *vmv1.StatsReply, container, table string, booted bool) (*vmv1.VMMemory, error) {
	t.Helper()
	i := slices.IndexFunc(reply.GetVms(), func(m *vmv1.VMMemory) bool { return slices.Equal(m.GetContainers(), []string{container}) })
	if i < 0 {
		t.Fatalf("%s has no VM in %v", container, reply)
	}
	m := reply.GetVms()[i]
	var wrong []error
	complain := func(format string, args ...any) {
		wrong = append(wrong, fmt.Errorf(container+": "+format, args...))
	}
	pss := kernelSum(t, fmt.Sprintf("/proc/%d/smaps_rollup", m.GetPid()), "Pss:")
	if off(m.GetPssBytes(), pss) {
		complain("PSS is %d by vm.stats, %d by the kernel", m.GetPssBytes(), pss)
	}
	// What is of no file the cgroup counts by itself; QEMU and the relay are in it. Of a clone it lacks what that was forked with, or came with.
	charged := cgroupAnonymous(t, int(m.GetPid()))
	if booted && off(m.GetAnonymousBytes(), charged) {
		complain("%d bytes of no file by vm.stats, %d by its cgroup", m.GetAnonymousBytes(), charged)
	}
	if off(m.GetChargedBytes(), charged) {
		complain("%d bytes of no file in its cgroup by vm.stats, %d by the kernel", m.GetChargedBytes(), charged)
	}
	if m.GetPrivateBytes() > m.GetPssBytes() || m.GetPssBytes() > m.GetRssBytes() || m.GetPageTablesBytes() == 0 || m.GetRelaysPssBytes() == 0 ||
		m.GetGuestTotalBytes() == 0 || m.GetGuestUsedBytes()+m.GetGuestAvailableBytes() != m.GetGuestTotalBytes() {
		complain("the numbers do not fit together: %v", m)
	}
	if !strings.Contains(table, container) || !strings.Contains(table, m.GetSandbox()) {
		complain("a person is not shown it:\n%s", table)
	}
	return m, errors.Join(wrong...)
}

// off tells that a sum is farther from the kernel's than it may be.
func off(told, kernels uint64) bool {
	return math.Abs(float64(told)-float64(kernels)) > tolerance*float64(kernels)
}

// checkCharges holds what cgroups are charged against what the processes in them have: nothing is lost between the pool's
// cgroup and those of containers, wherever it counts.
func checkCharges(t *testing.T, reply *vmv1.StatsReply) error {
	t.Helper()
	charged, has := reply.GetTotal().GetChargedBytes()+reply.GetStock().GetChargedBytes(), anonymousTold(reply)
	t.Logf("%.1f MB of no file by processes, %.1f by cgroups, %.1f of it the pool's", float64(has)/1e6, float64(charged)/1e6, float64(reply.GetStock().GetChargedBytes())/1e6)
	if off(has, charged) {
		return fmt.Errorf("processes have %d bytes of no file, their cgroups are charged %d", has, charged)
	}
	return nil
}

// checkPages holds the sum of what is told against the pages of the host's memory that the processes have.
func checkPages(t *testing.T, reply *vmv1.StatsReply, pids []int) error {
	t.Helper()
	told := anonymousTold(reply)
	has, err := anonymousPages(pids)
	if err != nil {
		return err
	}
	t.Logf("%.1f MB of no file by vm.stats, %.1f by pages", float64(told)/1e6, float64(has)/1e6)
	if off(told, has) {
		return fmt.Errorf("vm.stats tells of %d bytes of no file, the processes have pages of %d", told, has)
	}
	return nil
}

// anonymousPages counts the pages of no file that processes have, one that several have once: by their page tables, and by what the
// kernel knows of each page (Documentation/admin-guide/mm/pagemap.rst). Nobody else's doings change it.
func anonymousPages(pids []int) (bytes uint64, err error) {
	const present, number, entry, anonymous = 1 << 63, 1<<55 - 1, 8, 1 << 12
	flags, err := os.Open("/proc/kpageflags")
	if err != nil {
		return 0, err
	}
	defer flags.Close()
	page := uint64(os.Getpagesize())
	seen := map[uint64]bool{}
	for _, pid := range pids {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			return 0, err
		}
		table, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
		if err != nil {
			return 0, err
		}
		defer table.Close()
		for line := range strings.Lines(string(maps)) {
			var from, to uint64
			if _, err := fmt.Sscanf(line, "%x-%x ", &from, &to); err != nil {
				return 0, err
			}
			entries := make([]byte, (to-from)/page*entry)
			n, _ := table.ReadAt(entries, int64(from/page*entry)) // none of what is the kernel's, and of what has gone
			for at := 0; at+entry <= n; at += entry {
				if e := binary.LittleEndian.Uint64(entries[at:]); e&present != 0 {
					seen[e&number] = true
				}
			}
		}
	}
	if seen[0] {
		return 0, errors.New("the kernel does not tell which pages a process has: that takes CAP_SYS_ADMIN of the host's own user namespace")
	}
	var known [entry]byte
	for frame := range seen {
		if _, err := flags.ReadAt(known[:], int64(frame*entry)); err != nil {
			return 0, err
		}
		if binary.LittleEndian.Uint64(known[:])&anonymous != 0 {
			bytes += page
		}
	}
	return bytes, nil
}

// untold is the host's anonymous memory of which neither vm.stats nor another process's sum tells: the median of several looks, as
// others come and go while one is taken.
func untold(t *testing.T, o ociUser, conn *bus.Conn, containers []string) (rest, told float64) {
	t.Helper()
	const looks, pause = 9, 500 * time.Millisecond // the kernel's counters are brought up to date each second
	var rests, tolds []float64
	for range looks {
		time.Sleep(pause)
		reply := statsOfAll(t, conn)
		told, ours := float64(anonymousTold(reply)), toldOf(t, o, conn, reply, containers)
		before := float64(kernelSum(t, "/proc/meminfo", "AnonPages:"))
		others := float64(anonymousOfOthers(t, ours))
		after := float64(kernelSum(t, "/proc/meminfo", "AnonPages:"))
		rests, tolds = append(rests, (before+after)/2-others-told), append(tolds, told)
	}
	return median(rests), median(tolds)
}

// anonymousOfOthers is what the processes have of no file of which vm.stats does not tell: the daemon, this test, who waits
// for its containers, and whatever else runs here. Three forked VMs have less than these may come to.
func anonymousOfOthers(t *testing.T, told []int) (sum uint64) {
	t.Helper()
	rollups, err := filepath.Glob("/proc/[0-9]*/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	for _, rollup := range rollups {
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(rollup))); err != nil || slices.Contains(told, pid) {
			continue
		}
		text, err := os.ReadFile(rollup)
		if err != nil {
			continue // a thread of the kernel, or one that has ended
		}
		anonymous, _ := kilobytes(text, "Pss_Anon:") // none when it has just ended
		sum += anonymous
	}
	return sum
}

// kilobytes is a line "NAME: N kB" in bytes, if there is one.
func kilobytes(text []byte, name string) (bytes uint64, found bool) {
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) == 3 && words[0] == name {
			kib, err := strconv.ParseUint(words[1], 10, 64)
			return kib << 10, err == nil
		}
	}
	return 0, false
}

// cgroupAnonymous is the anonymous memory that a process's cgroup is charged, by either version of cgroups.
func cgroupAnonymous(t *testing.T, pid int) uint64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	path, counter := "", ""
	for line := range strings.Lines(string(text)) { // "4:memory:/path" of version 1, "0::/path" of version 2
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(fields) != 3:
		case fields[1] == "memory":
			path, counter = "/sys/fs/cgroup/memory"+fields[2], "total_rss"
		case fields[0] == "0" && path == "":
			path, counter = "/sys/fs/cgroup"+fields[2], "anon"
		}
	}
	text, err = os.ReadFile(path + "/memory.stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == counter {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s/memory.stat has no %s", path, counter)
	return 0
}

// kernelSum reads a line "name number kB" of a file in /proc, in bytes.
func kernelSum(t *testing.T, path, name string) uint64 {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes, found := kilobytes(text, name); found {
		return bytes
	}
	t.Fatalf("%s has no %s", path, name)
	return 0
}
