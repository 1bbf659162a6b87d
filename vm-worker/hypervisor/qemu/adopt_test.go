// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"
)

// starterDir, when set, makes the test binary a worker that starts the VM
// described in the directory's spec.json and waits to be killed.
const starterDir = "BULKHEAD_TEST_STARTER_DIR"

func starter(dir string) {
	text, err := os.ReadFile(filepath.Join(dir, "spec.json"))
	if err != nil {
		panic(err)
	}
	var spec hypervisor.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		panic(err)
	}
	if os.Getenv("BULKHEAD_TEST_DIE_IN_LAUNCH") != "" {
		spec.Launched = func(hypervisor.Record) error {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	if library := os.Getenv("BULKHEAD_TEST_FORK"); library != "" {
		forkStarter(spec, library)
	}
	if _, err := New(Options{}).Start(context.Background(), spec); err != nil {
		panic(err)
	}
	os.Stdout.WriteString("started\n")
	select {}
}

// forkStarter makes a template in one directory, has a VM forked in another, and waits.
func forkStarter(spec hypervisor.Spec, library string) {
	d, dir := New(Options{Zygote: library}), spec.Dir
	spec.Dir = filepath.Join(dir, "template")
	from, err := d.MakeTemplate(context.Background(), spec, answers)
	if err != nil {
		panic(err)
	}
	spec.Dir, spec.From = filepath.Join(dir, "c"), from
	if os.Getenv("BULKHEAD_TEST_FORK_DIES") != "" {
		spec.Launched = func(hypervisor.Record) error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	}
	v, err := d.Start(context.Background(), spec)
	if err != nil || !v.(*vm).forked {
		panic(errors.Join(err, from.Worn()))
	}
	fmt.Printf("forked by %d\n", from.Process())
	select {}
}

// runStarter starts a VM from another process, which is dead when it returns.
func runStarter(t *testing.T, spec hypervisor.Spec, env ...string) (said string) {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(spec.Dir, "spec.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(append(os.Environ(), starterDir+"="+spec.Dir), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, _ := out.Read(buf)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return string(buf[:n])
}

func TestVMSurvivesItsStarterAndIsAdopted(t *testing.T) {
	t.Parallel()
	spec := newSpec(t)
	if said := runStarter(t, spec); said != "started\n" {
		t.Fatalf("the starter said %q", said)
	}
	rec, err := hypervisor.LoadRecord(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	v, err := New(Options{}).Adopt(t.Context(), rec)
	if err != nil {
		_ = rec.KillProcess()
		t.Fatal(err)
	}
	t.Cleanup(func() { killVM(t, v) })
	c := connect(t, v)
	c.ready()
	if got := c.ask("echo still here"); got != "still here" {
		t.Errorf("the adopted guest answers %q", got)
	}
	c.conn.Close()
	v.Release()
	select {
	case <-v.Done():
		t.Error("a released vm is done")
	default:
	}

	v2, err := New(Options{}).Adopt(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	c2 := connect(t, v2)
	if got := c2.ask("echo again"); got != "again" {
		t.Errorf("the guest answers %q after a second adoption", got)
	}
	c2.send("panic")
	waitDone(t, v2, 5*time.Second)
	if !strings.Contains(v2.ExitReason(), "kernel panicked") {
		t.Errorf("the reason of an adopted vm's end is %q", v2.ExitReason())
	}
	if _, err := New(Options{}).Adopt(t.Context(), rec); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("adopting a dead vm gives %v, want ErrGone", err)
	}
}

func TestDeathOfTheStarterBeforeTheRecordLeavesNothing(t *testing.T) {
	t.Parallel()
	spec := newSpec(t)
	runStarter(t, spec, "BULKHEAD_TEST_DIE_IN_LAUNCH=1")
	rec, err := hypervisor.LoadRecord(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if rec.PID == 0 {
		t.Fatal("the record was written too late to tell")
	}
	pidfd, err := rec.Pidfd()
	if errors.Is(err, hypervisor.ErrGone) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	ended := make(chan error, 1)
	go func() { ended <- waitExit(pidfd) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the jail's helper outlives the starter that gave it no orders")
	}
}

func TestFailedStartLeavesNoProcess(t *testing.T) {
	t.Parallel()
	spec := newSpec(t)
	// Not a multiple of anything, and no kernel: QEMU refuses it.
	spec.Kernel = filepath.Join(spec.Dir, "kernel")
	if err := os.WriteFile(spec.Kernel, []byte("not a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(Options{}).Start(t.Context(), spec)
	if err == nil || !strings.Contains(err.Error(), "qemu says: ") {
		t.Errorf("starting nonsense gives %v, want QEMU's own words", err)
	}
	rec, err := hypervisor.LoadRecord(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rec.Pidfd(); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("the process of a failed start: %v, want ErrGone", err)
	}
}

func TestLaunchedErrorStopsTheLaunch(t *testing.T) {
	t.Parallel()
	spec := newSpec(t)
	refusal := errors.New("the record cannot be written")
	var seen hypervisor.Record
	spec.Launched = func(r hypervisor.Record) error { seen = r; return refusal }
	if _, err := New(Options{}).Start(t.Context(), spec); !errors.Is(err, refusal) {
		t.Errorf("the start gives %v", err)
	}
	if seen.PID == 0 || seen.StartTime == 0 {
		t.Errorf("the record given was %+v", seen)
	}
	if _, err := seen.Pidfd(); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("the process is still there: %v", err)
	}
}

func TestMissingPartsAreToldWithoutWordsEnginesMisread(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := hypervisor.Spec{ID: "a", Dir: dir, Kernel: file, Image: file, MemoryBytes: 64 << 20, Accelerator: hypervisor.TCG}
	for _, c := range []struct {
		name string
		opts Options
		edit func(*hypervisor.Spec)
		want string
	}{
		{"kernel", Options{}, func(s *hypervisor.Spec) { s.Kernel = "/missing/vmlinux" }, "deploy/guest/build-kernel"},
		{"image", Options{}, func(s *hypervisor.Spec) { s.Image = "/missing/image" }, "deploy/guest/build-image"},
		{"image is a directory", Options{}, func(s *hypervisor.Spec) { s.Image = dir }, "must be a readable file"},
		{"qemu", Options{Binary: "qemu-of-nowhere"}, func(*hypervisor.Spec) {}, "apt install qemu-system-x86"},
		{"qemu elsewhere", Options{Binary: "/proc/self/exe"}, func(*hypervisor.Spec) {}, "outside /usr"},
		{"not qemu", Options{Binary: "/usr/bin/true"}, func(*hypervisor.Spec) {}, "does not say that it is QEMU"},
		{"memory", Options{}, func(s *hypervisor.Spec) { s.MemoryBytes = 1 << 20 }, "at least 32 MiB"},
		{"id", Options{}, func(s *hypervisor.Spec) { s.ID = "a,b" }, "letters, digits"},
		{"accelerator", Options{}, func(s *hypervisor.Spec) { s.Accelerator = hypervisor.Auto }, "not resolved"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			spec := good
			c.edit(&spec)
			_, err := New(c.opts).Start(t.Context(), spec)
			if err == nil {
				t.Fatal("the start succeeded")
			}
			text := err.Error()
			if !strings.Contains(text, c.want) {
				t.Errorf("the error is %q, want %q in it", text, c.want)
			}
			for _, misread := range []string{"no such file or directory", "permission denied"} {
				if strings.Contains(text, misread) {
					t.Errorf("the error %q contains %q", text, misread)
				}
			}
		})
	}
}
