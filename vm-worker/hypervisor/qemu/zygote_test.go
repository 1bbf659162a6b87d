// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"

	"golang.org/x/sys/unix"
)

func buildZygote(t testing.TB) string { return buildZygoteOf(t, "preload/zygote") }

func buildZygoteOf(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), Zygote)
	sources, err := filepath.Glob(dir + "/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	args := append([]string{"-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-o", path}, sources...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("compiling %s: %v\n%s", Zygote, err, out)
	}
	return path
}

// buildZygoteWith builds the library with a change of one of its files.
func buildZygoteWith(t *testing.T, file, before, after string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("preload/zygote")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, file)
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), before) {
		t.Fatalf("%s has no %q: %v", file, before, err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), before, after, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return buildZygoteOf(t, dir)
}

// startedAndForked runs a test with a VM of each kind. The VM is the test's to end.
func startedAndForked(t *testing.T, test func(t *testing.T, d *Driver, v hypervisor.VM)) {
	t.Helper()
	t.Run("started", func(t *testing.T) {
		t.Parallel()
		d := New(Options{})
		v, err := d.Start(t.Context(), newSpec(t))
		if err != nil {
			t.Fatal(err)
		}
		test(t, d, v)
	})
	t.Run("forked", func(t *testing.T) {
		t.Parallel()
		d, s := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
		from := makeTemplate(t, d, s)
		s.Dir, s.From = filepath.Join(s.Dir, "c"), from
		if err := os.Mkdir(s.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		v, err := d.Start(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if !v.(*vm).forked {
			t.Error("it was not forked:", from.Worn())
		}
		test(t, d, v)
	})
}

// awake waits until the guest has booted, if it does.
func (c *control) awake(v hypervisor.VM) {
	c.t.Helper()
	if !v.(*vm).forked {
		c.ready()
	}
}

func TestVMsAreForkedFromAZygote(t *testing.T) {
	t.Parallel()
	d, s := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
	from := makeTemplate(t, d, s)
	if from.Worn() != nil || from.Process() == 0 {
		t.Fatal(from.Worn(), from.Process())
	}
	for i := range 3 {
		began := time.Now()
		v := clone(t, d, s, from, fmt.Sprint("c", i))
		if !v.(*vm).forked {
			t.Fatal("it was not forked:", from.Worn())
		}
		c := connect(t, v)
		if got := c.ask("echo hello"); got != "hello" {
			t.Fatalf("the clone answers %q", got)
		}
		t.Logf("from its start to its first answer %s", time.Since(began))
		if got := c.ask("share"); got != "ok" {
			t.Fatalf("mounting the share: %s", got)
		}
		if got := c.ask("list /run/share"); got != "" {
			t.Errorf("the share holds %q", got)
		}
		if i == 0 {
			var kib int
			if err := v.Resize(t.Context(), hypervisor.Size{VCPUs: 2, MemoryBytes: s.Max.MemoryBytes}); err != nil {
				t.Error(err)
			}
			if _, err := fmt.Sscanf(c.ask("read /proc/meminfo"), "MemTotal: %d kB", &kib); err != nil || kib < 300<<10 {
				t.Errorf("the clone has %d KiB, %v", kib, err)
			}
		}
	}
}

func TestAVMIsStartedWhenItCannotBeForked(t *testing.T) {
	t.Parallel()
	d, s := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
	from := makeTemplate(t, d, s)
	before := clone(t, d, s, from, "before")
	if err := unix.Kill(from.Process(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v := clone(t, d, s, from, "after")
	if v.(*vm).forked || from.Worn() == nil || from.Process() != 0 {
		t.Errorf("it is forked: %t; the template: %v, process %d", v.(*vm).forked, from.Worn(), from.Process())
	}
	for _, v := range []hypervisor.VM{before, v} {
		if got := connect(t, v).ask("echo hello"); got != "hello" {
			t.Errorf("a VM answers %q", got)
		}
	}
}

// TestAZygoteThatEndsIsNoLongerTold: nobody needs to want a VM first.
func TestAZygoteThatEndsIsNoLongerTold(t *testing.T) {
	t.Parallel()
	d, s := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
	from := makeTemplate(t, d, s)
	ended := from.(*template).zygote.ended
	if err := unix.Kill(from.Process(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("it was not reaped")
	}
	if from.Process() != 0 || from.Worn() == nil {
		t.Errorf("the template: process %d, %v", from.Process(), from.Worn())
	}
}

// TestAZygoteThatStandsStillHoldsUpNoVM: neither the next one, which is started, nor is the process left.
func TestAZygoteThatStandsStillHoldsUpNoVM(t *testing.T) {
	t.Parallel()
	d, s := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
	from := makeTemplate(t, d, s)
	pid, ended := from.Process(), from.(*template).zygote.ended
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	v := clone(t, d, s, from, "c")
	if got := connect(t, v).ask("echo hello"); got != "hello" || v.(*vm).forked {
		t.Errorf("the VM answers %q; it is forked: %t", got, v.(*vm).forked)
	}
	select {
	case <-ended:
	default:
		t.Errorf("process %d is left", pid)
	}
}

// TestWhatCannotForkIsKnownBeforeAVMIsWanted has a QEMU that lacks a function, as others than 7.2 may.
func TestWhatCannotForkIsKnownBeforeAVMIsWanted(t *testing.T) {
	t.Parallel()
	library := buildZygoteWith(t, "generation.c", `"acpi_send_event"`, `"acpi_send_nothing"`)
	d, s := New(Options{Zygote: library}), templateSpec(t)
	from := makeTemplate(t, d, s)
	if from.Process() != 0 || from.Worn() == nil || !strings.Contains(from.Worn().Error(), "does not export") {
		t.Errorf("the template: process %d, %v", from.Process(), from.Worn())
	}
	v := clone(t, d, s, from, "c")
	if got := connect(t, v).ask("echo hello"); got != "hello" || v.(*vm).forked {
		t.Errorf("the VM answers %q; it is forked: %t", got, v.(*vm).forked)
	}
}

// TestAChildOfWhichNothingIsToldIsReaped has a zygote that dies after it has forked and before it has said so.
func TestAChildOfWhichNothingIsToldIsReaped(t *testing.T) {
	t.Parallel()
	library := buildZygoteWith(t, "order.c", `snprintf(answer, sizeof answer, "forked %ld", child);`, `_exit(1);`)
	from := makeTemplate(t, New(Options{Zygote: library}), templateSpec(t))
	if from.Process() != 0 || from.Worn() == nil {
		t.Fatalf("the template: process %d, %v", from.Process(), from.Worn())
	}
	var left []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if left = unbegun(t); len(left) == 0 { // those of other tests come and go
			return
		}
	}
	t.Errorf("not reaped are %v", left)
}

// unbegun are the children of zygotes that have not begun, dead or alive: a VM leads a process group of its own.
func unbegun(t *testing.T) (found []string) {
	t.Helper()
	for _, pid := range list(t, "/proc") {
		text, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue // none, or gone
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // from the third on
		if group := fields[2]; fields[1] == fmt.Sprint(os.Getpid()) && group != pid && group != fmt.Sprint(unix.Getpgrp()) {
			found = append(found, pid)
		}
	}
	return found
}

// TestAForkEndsWithAStarterThatDiesBeforeItBegins: a process is recorded before it does anything, and needs its starter's word.
func TestAForkEndsWithAStarterThatDiesBeforeItBegins(t *testing.T) {
	t.Parallel()
	s := templateSpec(t)
	for _, dir := range []string{"template", "c"} {
		if err := os.Mkdir(filepath.Join(s.Dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if said := runStarter(t, s, "BULKHEAD_TEST_FORK="+buildZygote(t), "BULKHEAD_TEST_FORK_DIES=1"); said != "" {
		t.Fatalf("the starter said %q", said)
	}
	rec, err := hypervisor.LoadRecord(filepath.Join(s.Dir, "c"))
	if err != nil || rec.PID == 0 {
		t.Fatalf("process %d is recorded, %v", rec.PID, err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		pidfd, err := rec.Pidfd()
		if errors.Is(err, hypervisor.ErrGone) {
			return
		}
		if err == nil {
			pidfd.Close()
		}
		if time.Now().After(end) {
			_ = rec.KillProcess()
			t.Fatalf("process %d has outlived its starter: %v", rec.PID, err)
		}
	}
}

// TestManyAreForkedAtOnce has threads that have not left one stop when the next begins.
func TestManyAreForkedAtOnce(t *testing.T) {
	t.Parallel()
	const starters, each = 4, 12
	d, s := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
	from := makeTemplate(t, d, s)
	var all sync.WaitGroup
	for i := range starters {
		all.Go(func() {
			for j := range each {
				v := clone(t, d, s, from, fmt.Sprint("c", i, "-", j))
				if !v.(*vm).forked {
					t.Errorf("VM %d of starter %d is not forked: %v", j, i, from.Worn())
				}
				if j%4 != 0 {
					killVM(t, v)
				}
			}
		})
	}
	all.Wait()
}

func TestAForkThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	d, s := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
	from := makeTemplate(t, d, s)
	s.Dir = filepath.Join(s.Dir, "refused")
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	refusal := errors.New("not this one")
	var pids []int
	s.From, s.Launched = from, func(rec hypervisor.Record) error {
		pids = append(pids, rec.PID)
		return refusal
	}
	if _, err := d.Start(t.Context(), s); !errors.Is(err, refusal) {
		t.Errorf("the start ends with %v", err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d is left: %v", pid, err)
		}
	}
	if len(pids) == 0 {
		t.Error("nothing was launched")
	}
}

func TestForkedVMsOutliveTheirStarterAndTheZygoteDoesNot(t *testing.T) {
	t.Parallel()
	s := templateSpec(t)
	for _, dir := range []string{"template", "c"} {
		if err := os.Mkdir(filepath.Join(s.Dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var zygote int
	said := runStarter(t, s, "BULKHEAD_TEST_FORK="+buildZygote(t))
	if _, err := fmt.Sscanf(said, "forked by %d\n", &zygote); err != nil {
		t.Fatalf("the starter said %q", said)
	}
	rec, err := hypervisor.LoadRecord(filepath.Join(s.Dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := New(Options{}).Adopt(t.Context(), rec)
	if err != nil {
		_ = rec.KillProcess()
		t.Fatal(err)
	}
	t.Cleanup(func() { killVM(t, v) })
	if got := connect(t, v).ask("echo still here"); got != "still here" {
		t.Errorf("the adopted guest answers %q", got)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := hypervisor.FindProcess(zygote); errors.Is(err, hypervisor.ErrGone) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the zygote, process %d, has outlived its starter", zygote)
		}
	}
}
