// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/agent/vmtest"
	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

func terminal(t *testing.T, vm *vmtest.VM) {
	p := sh("tty; stty size; stty -a | grep -o -E '.?onlcr'; trap 'stty size; exit 9' WINCH; echo ready; while :; do read x; echo got $x; done")
	p.Terminal = true
	p.ConsoleSize = &specs.Box{Height: 33, Width: 99}
	ct := create(t, vm, "tty", p)
	ct.start(t)
	if err := ct.Until(within(t), "ready\r\n"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"33 99\r\n", " onlcr\r\n"} {
		if !strings.Contains(ct.Output(), want) && !strings.Contains(ct.Output(), strings.TrimLeft(want, " ")) {
			t.Errorf("terminal output %q lacks %q", ct.Output(), want)
		}
	}
	if strings.Contains(ct.Output(), "-onlcr") {
		t.Error("the guest's terminal does not translate line ends")
	}
	ct.Input("word\n")
	if err := ct.Until(within(t), "got word\r\n"); err != nil {
		t.Error(err)
	}
	e := tty(t, ct, sh("echo exec; stty size; read x; echo $x"))
	if err := e.Until(within(t), "24 80"); err != nil {
		t.Fatal(err)
	}
	e.Input("in\n")
	if code := exit(t, e); code != 0 || !strings.HasPrefix(e.Output(), "exec\r\n24 80\r\n") || !strings.HasSuffix(e.Output(), "in\r\nin\r\n") {
		t.Errorf("terminal exec ended with %d and %q", code, e.Output())
	}
	ct.Resize(50, 132)
	ct.Input("\n")
	if err := ct.Until(within(t), "50 132"); err != nil {
		t.Error(err)
	}
	if code := exit(t, ct.Relay); code != 9 {
		t.Errorf("exit code %d", code)
	}
	ct.delete(t)
}

func tty(t *testing.T, ct *ctr, p *specs.Process) *vmtest.Relay {
	p.Terminal = true
	p.ConsoleSize = &specs.Box{Height: 24, Width: 80}
	return ct.exec(t, "tty", p)
}

func signals(t *testing.T, vm *vmtest.VM) {
	const trapped = "trap 'echo term; exit 21' TERM; echo up; while :; do sleep 0.05; done"
	ct := create(t, vm, "signal", sh(trapped))
	ct.start(t)
	a, b := ct.exec(t, "a", sh(trapped)), ct.exec(t, "b", sh(trapped))
	for _, r := range []*vmtest.Relay{ct.Relay, a, b} {
		if err := r.Until(within(t), "up"); err != nil {
			t.Fatal(err)
		}
	}
	call[agentv1.SignalReply](t, vm, "signal", &agentv1.SignalRequest{Container: "signal", ExecId: "a", Signal: 15})
	if code := exit(t, a); code != 21 {
		t.Errorf("signalled exec ended with %d", code)
	}
	// A relay that is signalled forwards it on the streams.
	c := ct.exec(t, "c", sh(trapped))
	if err := c.Until(within(t), "up"); err != nil {
		t.Fatal(err)
	}
	c.Signal(15)
	if code := exit(t, c); code != 21 {
		t.Errorf("exec signalled over its streams ended with %d", code)
	}
	call[agentv1.SignalReply](t, vm, "signal", &agentv1.SignalRequest{Container: "signal", Signal: 15, All: true})
	if code := exit(t, b); code != 21 && code != 137 {
		t.Errorf("exec ended with %d after a signal to all", code)
	}
	if code := exit(t, ct.Relay); code != 21 {
		t.Errorf("init ended with %d after a signal to all", code)
	}
	_, err := ask[agentv1.SignalReply](t, vm, "signal", &agentv1.SignalRequest{Container: "signal", Signal: 15})
	if bus.ReasonOf(err) != bus.FailedPrecondition || !strings.Contains(err.Error(), "container not running") {
		t.Errorf("signal to a stopped container: %v", err)
	}
	call[agentv1.SignalReply](t, vm, "signal", &agentv1.SignalRequest{Container: "signal", Signal: 9, All: true})
	ct.delete(t)
}

func pauseAndKill(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "pause", sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"))
	ct.start(t)
	if err := ct.Until(within(t), "2\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := ask[agentv1.ResumeReply](t, vm, "resume", &agentv1.ResumeRequest{Container: "pause"}); err == nil || !strings.Contains(err.Error(), "container not paused") {
		t.Errorf("resume of a running container: %v", err)
	}
	call[agentv1.PauseReply](t, vm, "pause", &agentv1.PauseRequest{Container: "pause"})
	if s := infoOf(t, vm, "pause").GetStatus(); s != "paused" {
		t.Errorf("status is %q", s)
	}
	if _, err := ct.tryExec(t, "e", process("true")); err == nil || !strings.Contains(err.Error(), "cannot exec in a paused container") {
		t.Errorf("exec while paused: %v", err)
	}
	call[agentv1.ResumeReply](t, vm, "resume", &agentv1.ResumeRequest{Container: "pause"})
	if code := exit(t, ct.exec(t, "e", process("true"))); code != 0 {
		t.Errorf("exec after resume ended with %d", code)
	}
	call[agentv1.PauseReply](t, vm, "pause", &agentv1.PauseRequest{Container: "pause"})
	ct.signal(t, 9)
	if code := exit(t, ct.Relay); code != 137 {
		t.Errorf("killed while paused: exit code %d", code)
	}
	ct.delete(t)
}

func orphans(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "orphans", sh("while :; do sleep 0.05; done"))
	ct.start(t)
	e := ct.exec(t, "e", sh("for i in $(seq 1 50); do (sleep 0.2 & ) ; done; exit 4"))
	if code := exit(t, e); code != 4 {
		t.Errorf("exec ended with %d", code)
	}
	// The orphans' output pipe keeps nobody waiting, and the container's init collects them.
	check := ct.exec(t, "check", sh("for i in $(seq 1 50); do ps -o stat,comm > /tmp/ps; grep -q '^Z' /tmp/ps || exit 0; sleep 0.1; done; cat /tmp/ps; exit 1"))
	if exit(t, check) != 0 {
		t.Errorf("dead processes are left: %s", check.Output())
	}
	ct.delete(t)
}

func deletes(t *testing.T, vm *vmtest.VM) {
	created := create(t, vm, "del", process("sleep", "1000"))
	created.delete(t)
	if code := exit(t, created.Relay); code != 137 {
		t.Errorf("deleted before start: exit code %d", code)
	}
	running := create(t, vm, "del", process("sleep", "1000"))
	running.start(t)
	e := running.exec(t, "e", process("sleep", "1000"))
	running.delete(t)
	if code := exit(t, e); code != 137 {
		t.Errorf("exec of a deleted container: exit code %d", code)
	}
	paused := create(t, vm, "del", process("sleep", "1000"))
	paused.start(t)
	call[agentv1.PauseReply](t, vm, "pause", &agentv1.PauseRequest{Container: "del"})
	paused.delete(t)
	paused.delete(t)
	none := create(t, vm, "del", nil)
	if _, err := ask[agentv1.StartReply](t, vm, "start", &agentv1.StartRequest{Container: "del"}); bus.ReasonOf(err) != bus.FailedPrecondition {
		t.Errorf("start without a process: %v", err)
	}
	none.delete(t)
}

func binds(t *testing.T, vm *vmtest.VM) {
	const key = "binds"
	busyboxRootfs(t, vm, key)
	for name, content := range map[string]string{"m0/file": "from the host", "m1": "a file"} {
		path := filepath.Join(vm.Share, key, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	spec := dockerSpec(t, sh("cat /data/file /etc/one; echo back > /data/new; echo x > /etc/one; echo rw=$?"))
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/data", Type: "bind", Source: "/srv", Options: []string{"rbind", "rprivate"}},
		specs.Mount{Destination: "/etc/one", Type: "bind", Source: "/srv/one", Options: []string{"bind", "rw"}})
	relay := vm.NewRelay()
	req := &agentv1.CreateRequest{Container: key, Config: marshal(t, spec), Channel: relay.Channel, Rootfs: key + "/rootfs",
		Shares: []*agentv1.ShareMount{{Destination: "/data", Source: key + "/m0"}, {Destination: "/etc/one", Source: key + "/m1", ReadOnly: true}}}
	call[agentv1.CreateReply](t, vm, "create", req)
	ct := &ctr{Relay: relay, vm: vm, key: key}
	ct.start(t)
	exit(t, relay)
	if got := relay.Output(); got != "from the hosta filerw=1\n" {
		t.Errorf("the container printed %q and %q", got, relay.ErrOutput())
	}
	// The exit is told only after the container's files are on the host.
	if got, err := os.ReadFile(filepath.Join(vm.Share, key, "m0/new")); err != nil || string(got) != "back\n" {
		t.Errorf("the host sees %q, %v", got, err)
	}
	ct.delete(t)
}

func outOfMemory(t *testing.T, vm *vmtest.VM) {
	kills := make(chan *agentv1.OutOfMemory, 8)
	sub, err := bus.OnAgentEvent(vm.Conn, vmtest.Sandbox, "oom", func(e *agentv1.OutOfMemory) { kills <- e })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	limit := int64(16 << 20)
	ct := create(t, vm, "oom", process("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"), func(s *specs.Spec) {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	})
	for len(vm.Exits()) > 0 {
		<-vm.Exits()
	}
	ct.start(t)
	if code := exit(t, ct.Relay); code != 137 {
		t.Errorf("exit code %d, output %q", code, ct.Output())
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	select {
	case e := <-vm.Exits():
		if !e.GetOomKilled() {
			t.Errorf("exit event is %v, want oom_killed", e)
		}
	case <-ctx.Done():
		t.Error("no exit event")
	}
	select {
	case e := <-kills:
		if e.GetContainer() != "oom" || e.GetKills() == 0 {
			t.Errorf("the kill is told as %v", e)
		}
	case <-ctx.Done():
		t.Error("the kill is not told")
	}
	if p := infoOf(t, vm, "oom").GetProcesses()[0]; !p.GetOomKilled() {
		t.Errorf("status is %v, want oom_killed", p)
	}
	ct.delete(t)
}

func configure(t *testing.T, vm *vmtest.VM) {
	const when = int64(1893456000_000000000) // 2030
	req := &agentv1.ConfigureRequest{Vm: vmtest.Sandbox, Hostname: "guest-one", UnixNanos: when, Entropy: []byte(strings.Repeat("e", 64))}
	if reply := call[agentv1.ConfigureReply](t, vm, "configure", req); reply.GetKernel() == "" {
		t.Error("no kernel in the reply")
	}
	call[agentv1.ConfigureReply](t, vm, "configure", req)
	req.Vm = "another"
	if _, err := ask[agentv1.ConfigureReply](t, vm, "configure", req); bus.ReasonOf(err) != bus.FailedPrecondition {
		t.Errorf("second identity: %v", err)
	}
	ct := create(t, vm, "clock", sh("busybox date +%Y"))
	ct.start(t)
	exit(t, ct.Relay)
	if got := ct.Output(); got != "2030\n" {
		t.Errorf("the container's year is %q", got)
	}
	ct.delete(t)
}

func honoured(t *testing.T, vm *vmtest.VM) {
	umask := uint32(0o27)
	p := sh("umask; touch /x 2>&1; cat /tmp/hook; cat /proc/sys/kernel/shmmni; cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max; busybox cat /proc/self/mountinfo | grep -c ' /opt/t '")
	p.User.Umask = &umask
	limit := int64(77)
	ct := create(t, vm, "honoured", p, func(s *specs.Spec) {
		s.Root.Readonly = true
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"},
			specs.Mount{Destination: "/opt/t", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}})
		s.Hooks.StartContainer = []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo hooked > /tmp/hook"}}}
		s.Linux.Sysctl["kernel.shmmni"] = "4321"
		s.Linux.Resources.CPU = &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Shares: ptr(uint64(512))}
		s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
	})
	ct.start(t)
	exit(t, ct.Relay)
	const want = "0027\ntouch: /x: Read-only file system\nhooked\n4321\n50000 100000\n77\n1\n"
	if ct.Output() != want {
		t.Errorf("the container printed %q and %q, want %q", ct.Output(), ct.ErrOutput(), want)
	}
	ct.delete(t)
}

func ptr[T any](v T) *T { return &v }

func deleteDuringCreate(t *testing.T, vm *vmtest.VM) {
	for range 3 {
		created := make(chan error, 1)
		go func() {
			_, err := tryCreate(t, vm, "race", process("sleep", "1000"))
			created <- err
		}()
		for infoOf(t, vm, "race") == nil && len(created) == 0 {
		}
		call[agentv1.DeleteReply](t, vm, "delete", &agentv1.DeleteRequest{Container: "race"})
		// Either it was killed while being created, or it was there for a moment.
		err := <-created
		if info := infoOf(t, vm, "race"); info != nil {
			t.Errorf("the container is still there (create said %v): %v", err, info)
		}
	}
	ct := create(t, vm, "race", process("true"))
	ct.start(t)
	if code := exit(t, ct.Relay); code != 0 {
		t.Errorf("the name cannot be used again: exit code %d", code)
	}
	ct.delete(t)
}

func newLink(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "link", sh("i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.01; done; read x; echo $x; exit 6"))
	ct.start(t)
	for _, at := range []string{"line 50\n", "line 150\n"} {
		if err := ct.Until(within(t), at); err != nil {
			t.Fatal(err)
		}
		vm.Cut()
		select {
		case ready := <-vm.Readies():
			if got := ready.GetContainers(); len(got) != 1 || got[0] != "link" {
				t.Errorf("the agent says it has %v", got)
			}
		case <-time.After(patience):
			t.Fatal("the agent did not come back")
		}
	}
	ct.Input("input\n")
	if code := exit(t, ct.Relay); code != 6 {
		t.Errorf("exit code %d", code)
	}
	var want strings.Builder
	for i := 1; i <= 300; i++ {
		fmt.Fprintln(&want, "line", i)
	}
	if want.WriteString("input\n"); ct.Output() != want.String() {
		t.Errorf("the output is not exact: %q", ct.Output())
	}
	ct.delete(t)
}
