// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/childtest"
	"bulkhead/bus/config"
	"bulkhead/bus/procstat"
	ksmworker "bulkhead/ksm-worker"
	busv1 "bulkhead/proto/bus/v1"
	ksmv1 "bulkhead/proto/ksm/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

const realSysfs = "/sys/kernel/mm/ksm"

// waitTime bounds every wait of these tests: the machine may be busy.
const waitTime = 3 * time.Minute

// helperEnv turns this program into a process with memory that may be merged.
const helperEnv = "BULKHEAD_KSM_HELPER"

func TestMain(m *testing.M) {
	if mib := os.Getenv(helperEnv); mib != "" {
		os.Exit(beMergeable(mib))
	}
	os.Exit(m.Run())
}

// beMergeable fills memory with pages that every helper has, each page another, and waits for its input to end.
func beMergeable(mib string) int {
	var n int
	if _, err := fmt.Sscan(mib, &n); err != nil {
		return 2
	}
	memory, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 3
	}
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE)
	for i := range memory {
		if page := i / os.Getpagesize(); i%8 == 0 {
			memory[i], memory[i+1], memory[i+2] = byte(page), byte(page>>8), byte(i>>3)
		}
	}
	if err := unix.Madvise(memory, unix.MADV_MERGEABLE); err != nil {
		return 4
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// helper starts a process with that much memory; its end is the test's.
func helper(t *testing.T, mib int) (pid int) {
	t.Helper()
	child := childtest.Start(t, fmt.Sprint(helperEnv, "=", mib))
	t.Cleanup(func() {
		if err := child.End(); err != nil {
			t.Errorf("a helper: %v", err)
		}
	})
	return child.Process.Pid
}

// rig is a service on a bus.
type rig struct {
	t         *testing.T
	bus       *bustest.Bus
	sandboxes *bus.Bucket[*vmv1.Sandbox]
	stop      func()
}

func start(t *testing.T, b *bustest.Bus, mode, sysfs string) *rig {
	t.Helper()
	r := &rig{t: t, bus: b}
	var err error
	if r.sandboxes, err = bus.OpenBucket[*vmv1.Sandbox](t.Context(), b.Conn(), bus.BucketSandboxes); err != nil {
		t.Fatal(err)
	}
	conn, err := b.Server.ConnInProcess("ksm")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	serving, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- ksmworker.Run(ctx, ksmworker.Deps{
			Conn: conn, RunDir: b.RunDir, Config: config.KSM{Mode: mode, MaxCPUPercent: 100}, Sysfs: sysfs,
			Log: bustest.Log(t), Version: "1.0.0", Serving: func() {
				_ = conn.NATS().Flush()
				close(serving)
			},
		})
	}()
	select {
	case <-serving:
	case err := <-ended:
		t.Fatalf("the service ended: %v", err)
	}
	once := false
	r.stop = func() {
		if once {
			return
		}
		once = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the service ended with %v", err)
		}
		conn.Close()
	}
	t.Cleanup(r.stop)
	return r
}

// vm writes the record of a VM that is this process.
func (r *rig) vm(id string, pid int, mergeable bool) {
	r.t.Helper()
	process, err := procstat.Read("/proc", pid)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = r.sandboxes.Put(r.t.Context(), id, &vmv1.Sandbox{Id: id, State: "running", Pid: int32(pid), PidStartTime: process.Start, Mergeable: mergeable})
	if err != nil {
		r.t.Fatal(err)
	}
}

// One answer of the bus holds some thousands of VMs.
func TestThousandsOfVMsAreToldOfInParts(t *testing.T) {
	const count = 3000
	r := start(t, bustest.Start(t), "observe", "")
	for i := range count {
		r.vm(fmt.Sprintf("vm-%0250d", i), os.Getpid(), true)
	}
	told, parts := 0, 0
	end := time.Now().Add(waitTime)
	for next := ""; told < count && time.Now().Before(end); {
		ctx, cancel := context.WithDeadline(t.Context(), end)
		status, err := bus.Call[ksmv1.Status](ctx, r.bus.Conn(), r.bus.Conn().Subject("ksm", "status"), &ksmv1.StatusRequest{After: next})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range status.Vms {
			if want := fmt.Sprintf("vm-%0250d", told); v.Sandbox != want {
				t.Fatalf("told of is %s instead of %s", v.Sandbox, want)
			}
			told++
		}
		parts++
		if next = status.Next; next == "" && told < count { // it has not heard of all of them yet
			told, parts = 0, 0
			time.Sleep(100 * time.Millisecond)
		}
	}
	if told != count || parts < 2 {
		t.Errorf("%d of %d are told of, in %d parts", told, count, parts)
	}
}

func (r *rig) gone(id string) {
	r.t.Helper()
	if err := r.sandboxes.Delete(r.t.Context(), id); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) status() *ksmv1.Status {
	r.t.Helper()
	s, err := bus.Call[ksmv1.Status](r.t.Context(), r.bus.Conn(), r.bus.Conn().Subject("ksm", "status"), &busv1.StatusRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// await waits until the status is as it should be.
func (r *rig) await(what string, is func(*ksmv1.Status) bool) *ksmv1.Status {
	r.t.Helper()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		s := r.status()
		if is(s) {
			return s
		}
		if time.Since(began) > waitTime {
			r.t.Fatalf("waited for: %s; the service says %v", what, s)
		}
	}
}

func settings(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range []string{"run", "pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode", "advisor_max_cpu", "advisor_min_pages_to_scan", "advisor_max_pages_to_scan", "advisor_target_scan_time"} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			all[name] = strings.TrimSpace(string(raw))
			if _, after, found := strings.Cut(all[name], "["); found { // "[none] scan-time"
				all[name], _, _ = strings.Cut(after, "]")
			}
		}
	}
	return all
}

// TestTheRealKernelMergesAndGetsItsSettingsBack: real processes, the real /sys/kernel/mm/ksm.
func TestTheRealKernelMergesAndGetsItsSettingsBack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the kernel's settings need root")
	}
	if _, err := os.Stat(realSysfs); err != nil {
		t.Skip("this kernel has no KSM:", err)
	}
	b := bustest.Start(t)
	r := start(t, b, "auto", "")
	if s := r.await("a first look", func(s *ksmv1.Status) bool { return s.Kernel != nil }); s.Steering || s.Phase != "idle" {
		t.Errorf("without a VM the service is at work: %v", s)
	}
	// A second service, as another daemon of this host has, and one that is no VM and may not be disturbed.
	const mib = 24
	first, second, out := helper(t, mib), helper(t, mib), helper(t, mib)
	r.vm("vm-a", first, true)
	r.vm("vm-b", second, true)
	r.vm("vm-out", out, false)
	s := r.await("steering", func(s *ksmv1.Status) bool { return s.Steering || strings.Contains(s.Detail, "another Bulkhead") })
	if !s.Steering {
		t.Skip("the kernel is not this test's alone:", s.Detail)
	}
	before := s.HostSettings // not what is there as the test begins: another daemon's tests may steer then
	merged := func(s *ksmv1.Status) bool {
		if len(s.Vms) != 2 {
			return false
		}
		for _, v := range s.Vms {
			if v.MergedBytes < mib<<20*9/10 {
				return false
			}
		}
		return true
	}
	s = r.await("nearly all of two equal VMs merged", merged)
	if s.SavedBytes < mib<<20*9/10 || s.Vms[0].SavedBytes == 0 || s.Vms[0].SavedBytes > s.Vms[0].MergedBytes {
		t.Errorf("two times %d MiB that are equal: %v", mib, s)
	}
	r.await("a settled loop", func(s *ksmv1.Status) bool { return s.Phase == "settled" })

	// Another service takes over from one that was stopped; the last VM's end gives the host its own back.
	r.stop()
	if after := settings(t, realSysfs); !maps.Equal(before, after) && !steeredByOthers(t) {
		t.Errorf("after the service the kernel has\n%v, had\n%v", after, before)
	}
	r = start(t, b, "throttle", "")
	s = r.await("the classic way", func(s *ksmv1.Status) bool { return s.Steering || strings.Contains(s.Detail, "another Bulkhead") })
	if !s.Steering {
		t.Skip("the kernel is not this test's alone any more:", s.Detail)
	}
	if s.Phase != "aggressive" || s.Kernel.SleepMillisecs != 1 {
		t.Errorf("mode throttle begins with %v", s)
	}
	r.gone("vm-a")
	r.gone("vm-b")
	r.await("idleness", func(s *ksmv1.Status) bool { return s.Phase == "idle" && !s.Steering })
	if after := settings(t, realSysfs); !maps.Equal(before, after) && !steeredByOthers(t) {
		t.Errorf("after the last VM the kernel has\n%v, had\n%v", after, before)
	}
	// What is merged stays: nothing of others is undone.
	if s := r.status(); s.MergedBytes == 0 {
		t.Error("the end of steering has unmerged what was merged")
	}
}

// steeredByOthers says whether a daemon of other tests has taken the kernel meanwhile.
func steeredByOthers(t *testing.T) bool {
	t.Helper()
	dir, err := os.Open(realSysfs)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	return errors.Is(unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// TestTheServiceIsSteeredOverTheBus on a fake kernel: modes, kicks, yielding, history, and JSON.
func TestTheServiceIsSteeredOverTheBus(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, value string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{
		"run": "0", "pages_shared": "10", "pages_sharing": "250", "pages_to_scan": "100", "sleep_millisecs": "20", "full_scans": "7", "smart_scan": "1",
	} {
		write(name, value)
	}
	before := settings(t, dir)
	b := bustest.Start(t)
	var told []string
	events := make(chan string, 100)
	sub, err := bus.OnEvent(b.Conn(), "ksm", func(ev *busv1.Event) { events <- ev.Event })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	r := start(t, b, "observe", dir)
	r.vm("vm-a", os.Getpid(), true)
	r.await("a VM", func(s *ksmv1.Status) bool { return len(s.Vms) == 1 })
	conn := b.Conn()
	set := func(req *ksmv1.SetRequest) (*ksmv1.SetReply, error) {
		return bus.Call[ksmv1.SetReply](t.Context(), conn, conn.Subject("ksm", "set"), req)
	}
	kick := func() error {
		_, err := bus.Call[ksmv1.KickReply](t.Context(), conn, conn.Subject("ksm", "kick"), &ksmv1.KickRequest{})
		return err
	}
	if err := kick(); bus.ReasonOf(err) != bus.FailedPrecondition {
		t.Errorf("a kick in mode observe: %v", err)
	}
	for _, bad := range []*ksmv1.SetRequest{{Mode: "fast"}, {MaxCpuPercent: 101}, {MaxCpuPercent: -1}} {
		if _, err := set(bad); bus.ReasonOf(err) != bus.InvalidArgument {
			t.Errorf("set %v: %v", bad, err)
		}
	}
	if !maps.Equal(before, settings(t, dir)) {
		t.Error("mode observe has written to the kernel")
	}
	if reply, err := set(&ksmv1.SetRequest{Mode: "throttle"}); err != nil || reply.Status.Phase != "aggressive" || !reply.Status.Steering {
		t.Errorf("set to throttle: %v, %v", reply, err)
	}
	if err := kick(); err != nil {
		t.Error(err)
	}
	write("pages_to_scan", "12345") // somebody else
	r.await("yielding", func(s *ksmv1.Status) bool {
		if err := kick(); err != nil && bus.ReasonOf(err) != bus.FailedPrecondition {
			t.Error(err)
		}
		return s.Phase == "yielded" && strings.Contains(s.Yielded, "pages_to_scan is 12345")
	})
	if reply, err := set(&ksmv1.SetRequest{Mode: "auto", MaxCpuPercent: 10}); err != nil || reply.Status.Yielded != "" || reply.Status.Mode != "auto" {
		t.Errorf("set to auto after yielding: %v, %v", reply, err)
	}
	r.await("sweeping", func(s *ksmv1.Status) bool { return s.Phase == "sweeping" && s.Steering })
	if reply, err := set(&ksmv1.SetRequest{Mode: "off"}); err != nil || reply.Status.Steering {
		t.Errorf("set to off: %v, %v", reply, err)
	}
	if now := settings(t, dir); now["pages_to_scan"] != "12345" || now["sleep_millisecs"] != "20" {
		t.Errorf("switched off the kernel has %v", now)
	}
	text, err := conn.NATS().Request(conn.Subject("ksm", "history"), []byte(`{"last":2}`), time.Minute)
	if err != nil || !strings.Contains(string(text.Data), `"phase"`) {
		t.Errorf("the history as JSON: %v, %s", err, text.Data)
	}
	r.stop()
	for wanted := []string{"steering", "yielded", "restored"}; len(wanted) > 0; {
		select {
		case ev := <-events:
			told = append(told, ev)
			if ev == wanted[0] {
				wanted = wanted[1:]
			}
		case <-time.After(waitTime):
			t.Fatalf("the events were %v; %v did not come", told, wanted)
		}
	}
}

// TestAKernelWithoutKSMIsNoError.
func TestAKernelWithoutKSMIsNoError(t *testing.T) {
	t.Parallel()
	r := start(t, bustest.Start(t), "auto", filepath.Join(t.TempDir(), "absent"))
	r.vm("vm-a", os.Getpid(), true)
	s := r.await("a look", func(s *ksmv1.Status) bool { return strings.Contains(s.Detail, "no same-page merging") })
	if s.Kernel.GetAvailable() || s.Steering {
		t.Error(errors.New("it is said to merge"), s)
	}
}
