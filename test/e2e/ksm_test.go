// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	ksmv1 "bulkhead/proto/ksm/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/test/e2e/host"
)

const ksmDir = "/sys/kernel/mm/ksm"

// mergeTime bounds the wait for what the kernel's thread does in the rest of a busy machine's time.
const mergeTime = 3 * time.Minute

// merger is the ksm service of a host, asked over its bus.
type merger struct {
	t    *testing.T
	conn *bus.Conn
}

func (m merger) status() *ksmv1.Status {
	m.t.Helper()
	s, err := bus.Call[ksmv1.Status](within(m.t, commandTime), m.conn, m.conn.Subject("ksm", "status"), &busv1.StatusRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// await waits for a status.
func (m merger) await(what string, is func(*ksmv1.Status) bool) (s *ksmv1.Status) {
	m.t.Helper()
	must(m.t, mergeTime, func() error {
		if s = m.status(); !is(s) {
			return fmt.Errorf("no %s: %v", what, s)
		}
		return nil
	})
	return s
}

// since is what the history has of after a moment; the two have one clock.
func (m merger) since(at time.Time) (samples []*ksmv1.Sample) {
	m.t.Helper()
	reply, err := bus.Call[ksmv1.HistoryReply](within(m.t, commandTime), m.conn, m.conn.Subject("ksm", "history"), &ksmv1.HistoryRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, s := range reply.GetSamples() {
		if s.GetTime().AsTime().After(at) {
			samples = append(samples, s)
		}
	}
	return samples
}

// recorded waits for a sample of after a moment.
func (m merger) recorded(at time.Time, what string, is func(*ksmv1.Sample) bool) {
	m.t.Helper()
	must(m.t, mergeTime, func() error {
		if samples := m.since(at); !slices.ContainsFunc(samples, is) {
			return fmt.Errorf("the history has no %s: %v", what, samples)
		}
		return nil
	})
}

// TestTheKernelMergesVMsThatMayBe, on real VMs: what is merged and saved of each, those that are kept out, what starts and
// stops set going, and the host's own settings afterwards, also when the daemon was killed between.
func TestTheKernelMergesVMsThatMayBe(t *testing.T) {
	own := kernelIsOurs(t)
	h := newHost(t, "ksm", host.Settings{KSM: "auto", NoPool: true})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, h)
	o := newOCI(t, h)
	m := merger{t, dial(t, h)}
	idle := func(s *ksmv1.Status) bool { return s.GetPhase() == "idle" && !s.GetSteering() && s.GetKernel() != nil }
	m.await("idleness without a VM", idle)
	expectSettings(t, "with no VM", own)

	began := time.Now()
	launch := func(what string, annotations map[string]string) string {
		id, spec := newID(what), newSpec("sleep", "1000")
		spec.Annotations = annotations
		o.launch(id, spec)
		return id
	}
	merged := []string{launch("booted", nil)} // a host without a pool makes a template when a first VM would have used it
	awaitTemplate(t, m.conn)
	merged = append(merged, launch("clone-0", nil), launch("clone-1", nil))
	kept := []string{
		launch("off", map[string]string{vmv1.AnnotationKSM: "off"}),
		launch("class", map[string]string{vmv1.AnnotationTrustClass: "others"}),
	}
	pids := map[string]int{} // by the VM
	var names []string
	for _, id := range merged {
		s := o.sandbox(m.conn, id)
		pids[s.GetId()] = int(s.GetPid())
		names = append(names, s.GetId())
	}
	slices.Sort(names)
	s := m.await("settled merging of three VMs", func(s *ksmv1.Status) bool { return s.GetPhase() == "settled" && len(s.GetVms()) == len(merged) })
	if s.GetSavedBytes() == 0 || s.GetMergedBytes() <= s.GetSavedBytes() || !s.GetSteering() {
		t.Errorf("three like VMs: %v", s)
	}
	if !maps.Equal(s.GetHostSettings(), own) {
		t.Errorf("the host's own settings are told as %v and were %v", s.GetHostSettings(), own)
	}
	var sum int64
	for i, v := range s.GetVms() {
		expect(t, "a VM that is merged", v.GetSandbox(), names[i])
		expect(t, "its process", int(v.GetPid()), pids[v.GetSandbox()])
		if v.GetMergedBytes() < 1<<20 || v.GetSavedBytes() < 1<<20/2 || v.GetSavedBytes() > v.GetMergedBytes() {
			t.Errorf("of VM %s %d bytes are merged, which saves %d", v.GetSandbox(), v.GetMergedBytes(), v.GetSavedBytes())
		}
		if pages := mergingPages(t, int(v.GetPid())); pages == 0 {
			t.Errorf("the kernel has merged nothing of VM %s", v.GetSandbox())
		}
		sum += v.GetSavedBytes()
		t.Logf("VM %s: %.1f MB merged, %.1f MB saved", v.GetSandbox(), float64(v.GetMergedBytes())/1e6, float64(v.GetSavedBytes())/1e6)
	}
	if sum > s.GetSavedBytes() {
		t.Errorf("the VMs save %d bytes together, and the host %d", sum, s.GetSavedBytes())
	}
	for _, id := range kept {
		if pages := mergingPages(t, int(o.sandbox(m.conn, id).GetPid())); pages != 0 {
			t.Errorf("%d pages of %s are merged", pages, id)
		}
	}
	m.recorded(began, "settled loop", func(s *ksmv1.Sample) bool { return s.GetPhase() == "settled" && s.GetVms() == 3 })
	samples := m.since(began)
	grew, came := 0, int32(0)
	for i, s := range samples {
		came += s.GetStarted()
		if i > 0 && s.GetPhase() == "sweeping" && s.GetSavedBytes() > samples[i-1].GetSavedBytes() {
			grew++
		}
	}
	expect(t, "the starts in the history", int(came), len(merged))
	if grew == 0 {
		t.Errorf("no sweep over three VMs has gained: %v", samples)
	}

	// A start is worth a sweep, a stop a pass.
	before := time.Now()
	merged = append(merged, launch("later", nil))
	m.recorded(before, "start", func(s *ksmv1.Sample) bool { return s.GetStarted() == 1 && s.GetVms() == 4 })
	m.recorded(before, "sweep after it", func(s *ksmv1.Sample) bool { return s.GetPhase() == "sweeping" })
	m.await("settled merging of four VMs", func(s *ksmv1.Status) bool { return s.GetPhase() == "settled" && len(s.GetVms()) == 4 })
	before = time.Now()
	o.do("delete", "--force", merged[3])
	m.recorded(before, "stop", func(s *ksmv1.Sample) bool { return s.GetStopped() == 1 && s.GetVms() == 3 })

	// A daemon that is killed leaves its settings in the kernel; the next one knows whose they are.
	killDaemon(t, h)
	if maps.Equal(kernelSettings(t), own) {
		t.Error("a killed daemon has given the settings back, or had none of its own")
	}
	restart(t, h)
	m.conn = dial(t, h)
	s = m.await("steering by the next daemon", func(s *ksmv1.Status) bool { return s.GetSteering() && len(s.GetVms()) == 3 })
	if !maps.Equal(s.GetHostSettings(), own) {
		t.Errorf("to the next daemon the host's own settings are %v; they were %v", s.GetHostSettings(), own)
	}
	for _, id := range slices.Concat(merged[:3], kept) {
		o.do("delete", "--force", id)
	}
	m.await("idleness after the last VM", idle)
	expectSettings(t, "after the last VM", own)
}

// kernelIsOurs skips the test where it cannot have the kernel's merging to itself, and returns its settings.
func kernelIsOurs(t *testing.T) map[string]string {
	t.Helper()
	needsProduct(t)
	dir, err := os.Open(ksmDir)
	if err != nil {
		t.Skip("this kernel has no KSM:", err)
	}
	defer dir.Close() // and with it the lock
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Skip("another Bulkhead daemon of this machine steers the kernel's merging")
	}
	own := kernelSettings(t)
	if own["run"] != "0" {
		t.Skipf("this machine merges, or unmerges, by itself: run is %s", own["run"])
	}
	return own
}

// kernelSettings are those that the service changes, as the kernel has them.
func kernelSettings(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range []string{"run", "pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode", "advisor_max_cpu",
		"advisor_min_pages_to_scan", "advisor_max_pages_to_scan", "advisor_target_scan_time"} {
		text, err := os.ReadFile(filepath.Join(ksmDir, name))
		if err != nil {
			continue // not every kernel has each
		}
		value := strings.TrimSpace(string(text))
		if _, chosen, found := strings.Cut(value, "["); found { // "[none] scan-time"
			value, _, _ = strings.Cut(chosen, "]")
		}
		all[name] = value
	}
	return all
}

func expectSettings(t *testing.T, when string, want map[string]string) {
	t.Helper()
	if now := kernelSettings(t); !maps.Equal(now, want) {
		t.Errorf("%s the kernel has %v instead of the host's own %v", when, now, want)
	}
}

// mergingPages is what the kernel has merged of a process (proc(5), ksm_merging_pages).
func mergingPages(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/ksm_merging_pages", pid))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
