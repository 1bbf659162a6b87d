// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/agent/vmtest"
	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

// heardOf waits until the agent knows an exec: by its name, as one that was given up may still be there.
func heardOf(t *testing.T, vm *vmtest.VM, container, exec string) {
	t.Helper()
	is := func(p *agentv1.Process) bool { return p.GetExecId() == exec }
	for end := time.Now().Add(30 * time.Second); !slices.ContainsFunc(infoOf(t, vm, container).GetProcesses(), is); {
		if time.Now().After(end) {
			t.Fatalf("the agent does not hear of exec %q", exec)
		}
	}
}

// frozenExec starts execs in a paused container: each waits for the resume or is answered in time, one that was given up
// or killed never runs, and none of them stops the agent.
func frozenExec(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "frozen", process("sleep", "1000"))
	ct.start(t)
	call[agentv1.PauseReply](t, vm, "pause", &agentv1.PauseRequest{Container: "frozen"})
	late, killed := vm.NewRelay(), vm.NewRelay()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := bus.CallAgent[agentv1.ExecReply](ctx, vm.Conn, vmtest.Sandbox, "exec", &agentv1.ExecRequest{
		Container: "frozen", ExecId: "late", Process: marshal(t, sh("echo alive")), Channel: late.Channel, IgnorePaused: true,
	})
	if bus.ReasonOf(err) != bus.DeadlineExceeded {
		t.Errorf("an exec in a frozen container: %v", err)
	}
	// The agent is there for others meanwhile.
	if info := infoOf(t, vm, "frozen"); info.GetStatus() != "paused" {
		t.Errorf("status is %v", info)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := ask[agentv1.ExecReply](t, vm, "exec", &agentv1.ExecRequest{
			Container: "frozen", ExecId: "killed", Process: marshal(t, sh("echo alive")), Channel: killed.Channel, IgnorePaused: true,
		})
		answered <- err
	}()
	heardOf(t, vm, "frozen", "killed")
	call[agentv1.SignalReply](t, vm, "signal", &agentv1.SignalRequest{Container: "frozen", ExecId: "killed", Signal: 9})
	if err := <-answered; err == nil || !strings.Contains(err.Error(), "killed before it ran") {
		t.Errorf("the killed exec was answered with: %v", err)
	}
	waiting := vm.NewRelay()
	go func() {
		_, err := ask[agentv1.ExecReply](t, vm, "exec", &agentv1.ExecRequest{
			Container: "frozen", ExecId: "waiting", Process: marshal(t, sh("echo alive; exit 4")), Channel: waiting.Channel, IgnorePaused: true,
		})
		answered <- err
	}()
	heardOf(t, vm, "frozen", "waiting")
	call[agentv1.ResumeReply](t, vm, "resume", &agentv1.ResumeRequest{Container: "frozen"})
	if err := <-answered; err != nil {
		t.Errorf("the exec that waited for the resume: %v", err)
	}
	if code := exit(t, waiting); code != 4 || late.Output()+killed.Output() != "" || waiting.Output() != "alive\n" {
		t.Errorf("after the resume: %d; outputs %q, %q, %q", code, late.Output(), killed.Output(), waiting.Output())
	}
	// Deleting takes along what still hangs.
	call[agentv1.PauseReply](t, vm, "pause", &agentv1.PauseRequest{Container: "frozen"})
	go func() {
		_, err := ask[agentv1.ExecReply](t, vm, "exec", &agentv1.ExecRequest{
			Container: "frozen", ExecId: "deleted", Process: marshal(t, sh("echo alive")), Channel: vm.NewRelay().Channel, IgnorePaused: true,
		})
		answered <- err
	}()
	heardOf(t, vm, "frozen", "deleted")
	ct.delete(t)
	if err := <-answered; err == nil {
		t.Error("an exec in a container that was deleted meanwhile succeeded")
	}
}

// pauseAmongSignals: a signal to all processes freezes them for a moment.
func pauseAmongSignals(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "among", sh("trap : USR1; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"))
	ct.start(t)
	if err := ct.Until(within(t), "1\n"); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := ask[agentv1.SignalReply](t, vm, "signal", &agentv1.SignalRequest{Container: "among", Signal: 10, All: true}); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	for range 10 {
		call[agentv1.PauseReply](t, vm, "pause", &agentv1.PauseRequest{Container: "among"})
		began := time.Now()
		before := call[agentv1.StatsReply](t, vm, "stats", &agentv1.StatsRequest{Container: "among"}).GetCpuNs()
		time.Sleep(60 * time.Millisecond) // time in which it would run
		// A signal wakes even a frozen process, for microseconds.
		after := call[agentv1.StatsReply](t, vm, "stats", &agentv1.StatsRequest{Container: "among"}).GetCpuNs()
		if after-before > uint64(time.Since(began)/12) {
			t.Errorf("the paused container ran for %v", time.Duration(after-before))
		}
		call[agentv1.ResumeReply](t, vm, "resume", &agentv1.ResumeRequest{Container: "among"})
	}
	close(stop)
	<-stopped
	ct.delete(t)
}

func hostNumbers(t *testing.T, vm *vmtest.VM) {
	const key = "numbers"
	busyboxRootfs(t, vm, key)
	if err := os.MkdirAll(filepath.Join(vm.Share, key, "m0"), 0o777); err != nil {
		t.Fatal(err)
	}
	spec := dockerSpec(t, sh("touch /srv/data/x 2>&1; nproc; mount | grep ' /srv/data ' | grep -c '[(,]ro[,)]'"))
	spec.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "5-7", Mems: "1"}
	spec.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "16GB"}}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "srv/data", Type: "bind", Source: "/x", Options: []string{"rro"}})
	relay := vm.NewRelay()
	call[agentv1.CreateReply](t, vm, "create", &agentv1.CreateRequest{
		Container: key, Config: marshal(t, spec), Channel: relay.Channel, Rootfs: key + "/rootfs",
		Shares: []*agentv1.ShareMount{{Destination: "/srv/data", Source: key + "/m0", ReadOnly: true}},
	})
	ct := &ctr{Relay: relay, vm: vm, key: key}
	ct.start(t)
	exit(t, relay)
	if got := relay.Output(); got != "touch: /srv/data/x: Read-only file system\n1\n1\n" {
		t.Errorf("the container printed %q and %q", got, relay.ErrOutput())
	}
	ct.delete(t)
}

func privileged(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "privileged", sh("ls /dev/kmsg /dev/net/tun /dev/sda 2>&1; test -c /dev/net/tun && busybox head -c 1 /dev/net/tun 2>&1"), func(s *specs.Spec) {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		s.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11}, {Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200},
			{Path: "/dev/sda", Type: "b", Major: 8}, {Path: "/dev/vport0p1", Type: "c", Major: 200, Minor: 1},
		}
		s.Linux.Seccomp, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
	})
	ct.start(t)
	exit(t, ct.Relay)
	for _, want := range []string{"/dev/kmsg\n", "/dev/net/tun\n", "ls: /dev/sda: No such file", "head: /dev/net/tun: "} {
		if !strings.Contains(ct.Output(), want) {
			t.Errorf("the container printed %q, which lacks %q", ct.Output(), want)
		}
	}
	if strings.Contains(ct.Output(), "not permitted") {
		t.Errorf("a device cannot be used: %q", ct.Output())
	}
	ct.delete(t)
}

// guestOutOfMemory: whoever is killed, it is not the agent.
func guestOutOfMemory(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "greedy", process("dd", "if=/dev/zero", "of=/dev/null", "bs=1G", "count=1"))
	ct.start(t)
	if code := exit(t, ct.Relay); code != 137 {
		t.Errorf("exit code %d, output %q %q", code, ct.Output(), ct.ErrOutput())
	}
	if p := infoOf(t, vm, "greedy").GetProcesses()[0]; !p.GetOomKilled() {
		t.Errorf("status is %v, want oom_killed", p)
	}
	ct.delete(t)
}

func TestAgentWithoutItsControlPortPowersOff(t *testing.T) {
	vm := vmtest.Boot(t)
	ct := create(t, vm, "c", sh("trap '' TERM; echo > /tmp/written; echo up; sleep 1000"))
	ct.start(t)
	if err := ct.Until(within(t), "up"); err != nil {
		t.Fatal(err)
	}
	if err := vm.UnplugControl(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-vm.Ended():
	case <-time.After(patience):
		t.Fatal("the guest lives on without a control port")
	}
	if got := vm.Console(); !strings.Contains(got, "the control port failed") || strings.Contains(got, "anic") {
		t.Errorf("the console says:\n%s", got)
	}
	if _, err := os.Stat(filepath.Join(vm.Share, "c/rootfs/tmp/written")); err != nil {
		t.Errorf("what the container wrote is lost: %v", err)
	}
}

// statsOfOneThatEnds: its process may have ended, and nobody have heard of that yet.
func statsOfOneThatEnds(t *testing.T, vm *vmtest.VM) {
	for range 20 {
		ct := create(t, vm, "ends", process("sleep", "1000"))
		ct.start(t)
		over, asked := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(asked)
			for {
				select {
				case <-over:
					return
				default:
					if _, err := ask[agentv1.StatsReply](t, vm, "stats", &agentv1.StatsRequest{Container: "ends"}); err != nil {
						t.Errorf("statistics: %v", err)
						return
					}
				}
			}
		}()
		ct.signal(t, 9)
		exit(t, ct.Relay)
		close(over)
		<-asked
		ct.delete(t)
	}
}

// failingHook: the hook runs when the start has been answered, as with runc; the container then ends without its program.
func failingHook(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "hook", sh("echo ran"), func(s *specs.Spec) {
		s.Hooks.StartContainer = []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 3"}}}
	})
	ct.start(t)
	if code := exit(t, ct.Relay); code == 0 || ct.Output() != "" {
		t.Errorf("exit code %d, output %q %q", code, ct.Output(), ct.ErrOutput())
	}
	t.Logf("the container says %q", ct.ErrOutput())
	ct.delete(t)
}
