// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hostcgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/bus/childtest"
)

func TestMain(m *testing.M) {
	Main()
	if file := os.Getenv("BULKHEAD_TEST_SHARER"); file != "" {
		sharer(file)
	}
	os.Exit(m.Run())
}

func needCgroups(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making cgroups needs root")
	}
}

var serial int

// spec describes limits in a cgroup of this test's own.
func spec(path string, r *specs.LinuxResources) *specs.Spec {
	return &specs.Spec{Linux: &specs.Linux{CgroupsPath: path, Resources: r}}
}

func ownPath(t *testing.T) string {
	serial++
	return fmt.Sprintf("/bulkhead-test-%d-%d", os.Getpid(), serial)
}

func create(t *testing.T, s *specs.Spec, opts Options) *Cgroup {
	t.Helper()
	needCgroups(t)
	c, err := Create(s, "key", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// bystander is a process in the cgroup.
func bystander(t *testing.T, c *Cgroup) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if err := c.Enter(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func ptr[T any](v T) *T { return &v }

func read(t *testing.T, c *Cgroup, controller, v1, v2 string) string {
	t.Helper()
	name, dir := v1, c.state.Paths[controller]
	if cgroups.IsCgroup2UnifiedMode() {
		name, dir = v2, c.state.Paths[""]
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// TestWhatOutlivesAContainerHasItsLimitsBesideIt, also when the move was cut short and is made again.
func TestWhatOutlivesAContainerHasItsLimitsBesideIt(t *testing.T) {
	path := ownPath(t)
	c := create(t, spec(path+"/container", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(10))}}), Options{})
	t.Cleanup(func() { // the parent is an engine's
		for _, p := range c.state.Paths {
			_ = os.Remove(filepath.Dir(p))
		}
	})
	vm := bystander(t, c)
	file := filepath.Join(t.TempDir(), "state.json")
	for range 2 {
		heir, err := c.Inherit("vm-x", vm.Process.Pid, file)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, heir, "pids", "pids.max", "pids.max"); got != "10" {
			t.Errorf("the inherited limit is %s", got)
		}
		if got := read(t, heir, "pids", "cgroup.procs", "cgroup.procs"); got != strconv.Itoa(vm.Process.Pid) {
			t.Errorf("the processes there are %q", got)
		}
	}
	if err := c.Destroy(t.Context()); err != nil { // nobody is in it any more
		t.Error(err)
	}
	heir, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range heir.state.Paths {
		if want := path + "/bulkhead-vm-x"; !strings.HasSuffix(p, want) {
			t.Errorf("it is in %s, not in %s", p, want)
		}
	}
	_ = vm.Process.Kill()
	_ = vm.Wait()
	if err := heir.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	for _, p := range heir.state.Paths {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s is left", p)
		}
	}
}

func TestLimitsAreWidenedByTheOverhead(t *testing.T) {
	path := ownPath(t)
	over := Overhead{MemoryBytes: 100 << 20, Pids: 50}
	c := create(t, spec(path, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(4 << 20))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(10))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(20000)), Period: ptr(uint64(100000)), Cpus: "0"},
	}), Options{Overhead: over})
	if got, want := read(t, c, "memory", "memory.limit_in_bytes", "memory.max"), strconv.Itoa(104<<20); got != want {
		t.Errorf("the memory limit is %s, want %s", got, want)
	}
	if got := read(t, c, "pids", "pids.max", "pids.max"); got != "60" {
		t.Errorf("the pids limit is %s, want 60", got)
	}
	if got := read(t, c, "cpuset", "cpuset.cpus", "cpuset.cpus"); got != "0" {
		t.Errorf("the cpus are %s", got)
	}
	if got := read(t, c, "cpu", "cpu.cfs_quota_us", "cpu.max"); strings.HasPrefix(got, "20000") {
		t.Error("the quota throttles the boot")
	}
	if err := c.ApplyQuota(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, c, "cpu", "cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, "20000") {
		t.Errorf("the quota is %s", got)
	}
}

func TestUpdateChangesWhatItTellsAndTakesLimitsAway(t *testing.T) {
	over := Overhead{MemoryBytes: 100 << 20, Pids: 50}
	file := filepath.Join(t.TempDir(), "state.json")
	c := create(t, spec(ownPath(t), &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(4 << 20))}, Pids: &specs.LinuxPids{Limit: ptr(int64(10))},
	}), Options{Overhead: over, StateFile: file})
	expect := func(memory, pids, quota string) {
		t.Helper()
		for _, f := range []struct{ controller, v1, v2, want string }{
			{"memory", "memory.limit_in_bytes", "memory.max", memory},
			{"pids", "pids.max", "pids.max", pids},
			{"cpu", "cpu.cfs_quota_us", "cpu.max", quota},
		} {
			if got := read(t, c, f.controller, f.v1, f.v2); !strings.HasPrefix(got, f.want) {
				t.Errorf("%s is %s, want %s", f.v2, got, f.want)
			}
		}
	}
	unlimited, noQuota := "9223372036854771712", "-1"
	if cgroups.IsCgroup2UnifiedMode() {
		unlimited, noQuota = "max", "max"
	}
	if err := c.Update(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20))}, CPU: &specs.LinuxCPU{Quota: ptr(int64(30000))},
	}, over, file); err != nil {
		t.Fatal(err)
	}
	expect(strconv.Itoa(108<<20), "60", "30000")
	again, err := Load(file) // a worker that starts knows what holds
	if err != nil {
		t.Fatal(err)
	}
	if again.state.Quota.Quota != 30000 || again.state.Config.Resources.Memory != 108<<20 {
		t.Errorf("the state tells of %+v and %+v", again.state.Quota, again.state.Config.Resources)
	}
	if err := again.Update(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}, Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}, CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))},
	}, over, file); err != nil {
		t.Fatal(err)
	}
	expect(unlimited, "max", noQuota)
	if err := again.Resize(64<<20, 500, file); err != nil { // there is no limit of memory to move
		t.Fatal(err)
	}
	expect(unlimited, "max", "50000")
	if err := again.Resize(64<<20, 0, file); err != nil {
		t.Fatal(err)
	}
	expect(unlimited, "max", noQuota)
	if err := again.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20))}}, over, file); err != nil {
		t.Fatal(err)
	}
	if err := again.Resize(64<<20, 0, file); err != nil {
		t.Fatal(err)
	}
	expect(strconv.Itoa(64<<20), "max", noQuota)
}

func TestSettingsOfTheHostsDevicesNeedItsCgroupV2(t *testing.T) {
	for name, atHost := range map[string]bool{"cpuset.cpus": true, "io.max": true, "memory.high": false} {
		_, _, err := resourcesOf(&specs.LinuxResources{Unified: map[string]string{name: "1"}}, Overhead{})
		if refused := err != nil && strings.Contains(err.Error(), name); refused != (atHost && !cgroups.IsCgroup2UnifiedMode()) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestALimitThatTheHostLacksIsNamed(t *testing.T) {
	err := plain(fmt.Errorf("setting: %w", &fs.PathError{Op: "open", Path: "/sys/fs/cgroup/blkio/x/blkio.weight", Err: unix.ENOENT}))
	if !strings.Contains(err.Error(), "does not offer blkio.weight") || strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
}

func TestProcessesEnterAndAreCounted(t *testing.T) {
	c := create(t, spec(ownPath(t), nil), Options{})
	cmd := bystander(t, c)
	for _, file := range c.ProcsPaths() {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), strconv.Itoa(cmd.Process.Pid)) {
			t.Errorf("%s has %q, %v", file, b, err)
		}
	}
	stats, err := c.Stats()
	if err != nil || stats.PidsStats.Current != 1 {
		t.Errorf("the statistics count %d processes, %v", stats.PidsStats.Current, err)
	}
}

func TestDestroyRemovesOnlyWhatCreateMade(t *testing.T) {
	path := ownPath(t)
	outer := create(t, spec(path, nil), Options{})
	again, err := Create(spec(path, nil), "key", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range outer.state.Paths {
		if _, err := os.Stat(p); err != nil {
			t.Errorf("a cgroup that was there before is gone: %v", err)
		}
	}
	if err := outer.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range outer.state.Paths {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
	if err := outer.Destroy(t.Context()); err != nil {
		t.Errorf("destroying twice: %v", err)
	}
}

func TestDestroyWaitsForTheLastProcess(t *testing.T) {
	c := create(t, spec(ownPath(t), nil), Options{})
	cmd := bystander(t, c)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Destroy(short); err == nil {
		t.Error("a populated cgroup was removed")
	}
	go func() { _ = cmd.Process.Kill(); _, _ = cmd.Process.Wait() }()
	if err := c.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLoadFindsWhatAnInterruptedCreateMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cgroup.json")
	c := create(t, spec(ownPath(t), nil), Options{StateFile: file})
	loaded, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded.ProcsPaths()) == 0 || fmt.Sprint(loaded.ProcsPaths()) != fmt.Sprint(c.ProcsPaths()) {
		t.Errorf("loaded %v, made %v", loaded.ProcsPaths(), c.ProcsPaths())
	}
	if err := loaded.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.state.Paths {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
	if _, err := Load(file + ".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("loading nothing gives %v", err)
	}
}

func TestDefaultParentGoesWithItsLastCgroup(t *testing.T) {
	needCgroups(t)
	unnamed := func(key string) *Cgroup {
		t.Helper()
		c, err := Create(spec("pod/"+key, nil), key, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	name := fmt.Sprintf("parent-test-%d", os.Getpid())
	first, second := unnamed(name+"-1"), unnamed(name+"-2")
	place := filepath.Dir(filepath.Dir(first.ProcsPaths()[0])) // not of state.Made, which also names what v1's manager leaves alone
	if err := first.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(place); err != nil {
		t.Errorf("the parent of a cgroup that is used was removed: %v", err)
	}
	// Containers that come and go at once do not take the parent from each other.
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 10 {
				key := fmt.Sprintf("%s-%d-%d", name, i, j)
				c, err := Create(spec("pod/"+key, nil), key, Options{})
				if err != nil {
					t.Error(err)
					return
				}
				if err := c.Destroy(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
		if i == 4 {
			if err := second.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	all.Wait()
	if _, err := os.Stat(place); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", place, err)
	}
	// Containers of a daemon on this host may keep the default parent itself.
	if entries, err := filepath.Glob(filepath.Dir(place) + "/*/cgroup.procs"); err == nil && len(entries) == 0 {
		if _, err := os.Stat(filepath.Dir(place)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left empty: %v", filepath.Dir(place), err)
		}
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	needCgroups(t)
	path := ownPath(t)
	_, err := Create(spec(path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4095"}}), "key", Options{})
	if err == nil {
		t.Fatal("a CPU that does not exist was accepted")
	}
	mountpoint, findErr := cgroups.FindCgroupMountpoint("", "cpuset")
	if findErr != nil {
		mountpoint = "/sys/fs/cgroup"
	}
	if _, err := os.Stat(mountpoint + path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left", mountpoint+path)
	}
}

func TestWhereTheCgroupIs(t *testing.T) {
	for _, c := range []struct {
		name, asked string
		systemd     bool
		want, err   string
	}{
		{"named", "/docker/abc", false, "/docker/abc", ""},
		{"unnamed", "", false, "/bulkhead/key", ""},
		{"relative", "pod/abc", false, "/bulkhead/pod/abc", ""},
		{"escaping", "../../abc", false, "/bulkhead/abc", ""},
		{"the root", "/..", false, "", "whole host"},
		{"systemd's form", "system.slice:docker:abc", false, "", "--systemd-cgroup"},
		{"scope", "system.slice:docker:abc", true, "system.slice docker abc", ""},
		{"unnamed scope", "", true, " bulkhead key", ""},
		{"path with systemd", "/docker/abc", true, "", "slice:prefix:name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, _, err := configOf(spec(c.asked, nil), "key", Options{Systemd: c.systemd, PID: 1})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("the error is %v, want %q in it", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := config.Path
			if c.systemd {
				got = config.Parent + " " + config.ScopePrefix + " " + config.Name
			}
			if got != c.want {
				t.Errorf("the place is %q, want %q", got, c.want)
			}
		})
	}
}

func TestOOMKillInTheGuestIsSeenInTheHostCgroup(t *testing.T) {
	if cgroups.IsCgroup2UnifiedMode() {
		t.Skip("the eventfd is of cgroup v1")
	}
	for _, limit := range []int64{0, 256 << 20} {
		t.Run(strconv.FormatInt(limit>>20, 10)+" MiB", func(t *testing.T) {
			c := create(t, spec(ownPath(t), &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(limit)}}), Options{Overhead: DefaultOverhead})
			cmd := bystander(t, c)
			big := sharing(t, c)
			event := watchOOM(t, c.state.Paths["memory"])
			before := read(t, c, "memory", "memory.limit_in_bytes", "")

			begin := time.Now()
			if err := c.SignalOOM(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("took %s", time.Since(begin))
			if err := event.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := event.Read(make([]byte, 8)); err != nil {
				t.Errorf("the engine's eventfd says nothing: %v", err)
			}
			if after := read(t, c, "memory", "memory.limit_in_bytes", ""); after != before {
				t.Errorf("the limit was %s and is %s", before, after)
			}
			shown := make(chan error, 1)
			go func() { shown <- c.SignalOOM(t.Context()) }()
			for i := range int64(20) { // while it is lowered, too, a new limit is the last word
				limits := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr((512 + i) << 20)}}
				if err := c.Update(limits, Overhead{}, filepath.Join(t.TempDir(), "state")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
			if err := <-shown; err != nil {
				t.Error(err)
			}
			if got := read(t, c, "memory", "memory.limit_in_bytes", ""); got != strconv.Itoa(531<<20) {
				t.Errorf("the limit is %s", got)
			}
			for what, bystander := range map[string]*os.Process{"a small bystander": cmd.Process, "one that shares much memory": big} {
				if err := alive(bystander.Pid); err != nil {
					t.Errorf("%s was killed: %v", what, err)
				}
			}
			stats, err := c.Stats()
			if err != nil || stats.PidsStats.Current < 2 {
				t.Errorf("%d processes are in the cgroup, %v", stats.PidsStats.Current, err)
			}
		})
	}
}

// alive tells whether a process is more than a zombie.
func alive(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	if _, rest, _ := strings.Cut(string(text), ") "); strings.HasPrefix(rest, "Z") {
		return errors.New("it is a zombie")
	}
	return nil
}

// sharing is a process in the cgroup with much memory that another cgroup pays
// for, as QEMU has its program and the guest's image.
func sharing(t *testing.T, c *Cgroup) *os.Process {
	t.Helper()
	file := filepath.Join(t.TempDir(), "shared")
	if err := os.WriteFile(file, make([]byte, 128<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	child := childtest.Start(t, "BULKHEAD_TEST_SHARER="+file)
	if err := c.Enter(child.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return child.Process
}

func sharer(file string) {
	f, err := os.Open(file)
	if err == nil {
		_, err = unix.Mmap(int(f.Fd()), 0, 128<<20, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	}
	if err != nil {
		os.Exit(1)
	}
	fmt.Println("mapped")
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(0)
}

// watchOOM does what engines do, kernel Documentation/admin-guide/cgroup-v1/memory.rst, 10.
func watchOOM(t *testing.T, dir string) *os.File {
	t.Helper()
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	event := os.NewFile(uintptr(fd), "eventfd")
	t.Cleanup(func() { event.Close() })
	line := fmt.Sprintf("%d %d", fd, control.Fd())
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		t.Fatal(err)
	}
	return event
}
