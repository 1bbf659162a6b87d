// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"
)

// mapping is what of a file, or of memory of its own, a process has mapped (proc(5), smaps), in KiB.
type mapping struct {
	modes    string
	rss, pss int
}

// mapped sums up what a VM's process has of a file of its jail; of an empty name, its memory of its own.
func mapped(t testing.TB, v hypervisor.VM, file string) (sum mapping) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", v.Record().PID))
	if err != nil {
		t.Fatal(err)
	}
	head := regexp.MustCompile(`^[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \S+ *(.*)$`)
	ours := false
	for line := range strings.Lines(string(text)) {
		if m := head.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			if ours = m[2] == file; ours {
				sum.modes = m[1]
			}
			continue
		}
		name, rest, _ := strings.Cut(line, ":")
		kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		if !ours || err != nil {
			continue
		}
		switch name {
		case "Rss":
			sum.rss += kib
		case "Pss":
			sum.pss += kib
		}
	}
	return sum
}

// forgetPeak makes the resident memory that a VM's process has now its peak so far, in MiB (proc_pid_clear_refs(5)).
func forgetPeak(t *testing.T, v hypervisor.VM) int {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", v.Record().PID), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	return residentMiB(t, v, "VmHWM:")
}

// residentMiB is a line of the process's status: a guest may give memory back before anybody has looked at it.
func residentMiB(t *testing.T, v hypervisor.VM, line string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.Record().PID))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), line)
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		t.Fatalf("no %s of the VM's process", line)
	}
	kib, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

func TestOnePageCacheHoldsTheImageOfAllVMs(t *testing.T) {
	t.Parallel()
	const vms = 3
	first := newSpec(t)
	var started []hypervisor.VM
	for range vms {
		s := newSpec(t)
		s.Image = first.Image
		v := startVM(t, s)
		c := connect(t, v)
		c.ready()
		_, root, _ := strings.Cut(c.ask("read /proc/mounts"), " / ext4 ")
		options, _, _ := strings.Cut(root, " ")
		if !strings.Contains(","+options+",", ",dax=always,") || !strings.HasPrefix(options, "ro,") {
			t.Errorf("the guest has mounted its root with %q", options)
		}
		started = append(started, v)
	}
	for _, v := range started {
		m := mapped(t, v, jailImage)
		// The program that the guest runs is in it; what each VM has read alone counts as its own.
		if m.rss < 512 || m.pss*vms > m.rss*3/2 {
			t.Errorf("of the image, %d KiB are mapped and %d are this VM's share, with %d VMs", m.rss, m.pss, vms)
		}
		if m.modes != "r--s" {
			t.Errorf("the image is mapped %s", m.modes)
		}
		fds := fmt.Sprintf("/proc/%d/fd/", v.Record().PID)
		for _, fd := range list(t, fds) {
			if to, err := os.Readlink(fds + fd); err != nil || to != jailImage {
				continue
			}
			if mode, err := os.Lstat(fds + fd); err != nil || mode.Mode().Perm()&0o200 != 0 {
				t.Errorf("the image's descriptor can be written to: %v, %v", mode.Mode(), err)
			}
		}
	}
}

// TestWhatTheGuestFreesGoesBackToTheHost in half a minute, which issue 5 asks for: so a time is asserted here.
func TestWhatTheGuestFreesGoesBackToTheHost(t *testing.T) {
	t.Parallel()
	const mib, peak, back = 1 << 20, 512, 30 * time.Second
	s := newSpec(t)
	s.Max.MemoryBytes = s.MemoryBytes + 640*mib
	v := startVM(t, s)
	c := connect(t, v)
	c.ready()
	size := hypervisor.Size{VCPUs: 1, MemoryBytes: s.Max.MemoryBytes}
	if err := v.Resize(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	before := mapped(t, v, "").rss >> 10
	start := forgetPeak(t, v)
	began := time.Now()
	if got := c.ask("use " + strconv.Itoa(peak)); got != "ok" {
		t.Fatal(got)
	}
	freed := time.Now()
	var now int
	for {
		now = mapped(t, v, "").rss>>10 - before
		if now <= peak/10 {
			break
		}
		if took := time.Since(freed); took > back {
			t.Fatalf("%s after the guest has freed %d MiB, the VM still has %d MiB more than before", took, peak, now)
		}
		time.Sleep(200 * time.Millisecond) // the host is told no event
	}
	most := residentMiB(t, v, "VmHWM:") - start
	t.Logf("%d MiB taken in %s; %d of %d MiB are back after %s", peak, freed.Sub(began), most-now, most, time.Since(freed))
	if most < peak*3/4 {
		t.Errorf("the VM was seen with %d MiB more, while its guest used %d", most, peak)
	}
}
