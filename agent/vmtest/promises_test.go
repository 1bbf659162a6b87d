// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/agent/vmtest"
	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// One VM serves the tests of this file: each uses containers of its own.
func TestAgent(t *testing.T) {
	vm := vmtest.Boot(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, *vmtest.VM)
	}{
		{"exit codes are the process's own", exitCodes},
		{"streams carry every byte both ways", streamsAreExact},
		{"container looks as Docker's does", looksLikeDocker},
		{"refusals and failures leave nothing", failuresLeaveNothing},
		{"exec is independent of init", execs},
		{"a hundred execs in sequence", hundredExecs},
		{"eight execs in parallel", parallelExecs},
		{"terminal has a line discipline and a size", terminal},
		{"signals reach init, exec and all", signals},
		{"pause freezes and kill works while frozen", pauseAndKill},
		{"orphans of an exec are collected", orphans},
		{"delete in every state is complete and repeatable", deletes},
		{"bind mounts come from the share", binds},
		{"every kind of mount, with its options", mountsOfEveryKind},
		{"the root's propagation", rootPropagation},
		{"memory limit kills and says so", outOfMemory},
		{"limits change while it runs", limitsChange},
		{"configure is given once", configure},
		{"specification is honoured inside", honoured},
		{"delete ends a create that is under way", deleteDuringCreate},
		{"what hangs in a frozen container has a deadline and dies", frozenExec},
		{"signals to all do not undo a pause", pauseAmongSignals},
		{"host's processor numbers and odd mounts are understood", hostNumbers},
		{"privileged means all of the guest", privileged},
		{"failing hook in the container ends it", failingHook},
		{"statistics of a container that is just ending are given", statsOfOneThatEnds},
		{"without a limit the guest's memory is the limit", guestOutOfMemory},
		{"a new link loses no byte and no exit code", newLink},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, vm) })
	}
	if status := call[agentv1.StatusReply](t, vm, "status", &agentv1.StatusRequest{}); len(status.GetContainers()) != 0 {
		t.Errorf("containers left at the end: %v", status.GetContainers())
	}
	// "behind": each delete looks for cgroups, mounts and state that should be gone, and complains.
	if strings.Contains(vm.Console(), "panic") || strings.Contains(vm.Console(), "behind") {
		t.Errorf("the guest complained:\n%s", vm.Console())
	}
}

func sh(script string) *specs.Process { return process("sh", "-c", script) }

func exitCodes(t *testing.T, vm *vmtest.VM) {
	for _, c := range []struct {
		script string
		code   int
	}{{"exit 0", 0}, {"exit 1", 1}, {"exit 42", 42}, {"exit 127", 127}, {"kill -9 $$; sleep 100", 0}} {
		key := fmt.Sprintf("exit%d", c.code)
		ct := create(t, vm, key, sh(c.script))
		if c.code == 0 && strings.Contains(c.script, "kill") {
			// PID 1 of a namespace cannot kill itself: the host does.
			ct.start(t)
			ct.signal(t, 9)
			if got := exit(t, ct.Relay); got != 137 {
				t.Errorf("killed: exit code %d, want 137", got)
			}
			ct.delete(t)
			continue
		}
		ct.start(t)
		if got := exit(t, ct.Relay); got != c.code {
			t.Errorf("%s: exit code %d", c.script, got)
		}
		if info := infoOf(t, vm, key); info.GetStatus() != "stopped" || info.GetProcesses()[0].GetExitCode() != int32(c.code) {
			t.Errorf("%s: status is %v", c.script, info)
		}
		ct.delete(t)
	}
	for len(vm.Exits()) > 0 {
		<-vm.Exits()
	}
	ct := create(t, vm, "event", sh("exit 7"))
	ct.start(t)
	exit(t, ct.Relay)
	select {
	case e := <-vm.Exits():
		if e.GetContainer() != "event" || e.GetExitCode() != 7 || e.GetExecId() != "" {
			t.Errorf("exit event is %v", e)
		}
	case <-time.After(patience):
		t.Error("no exit event")
	}
	ct.delete(t)
}

func infoOf(t *testing.T, vm *vmtest.VM, key string) *agentv1.ContainerInfo {
	t.Helper()
	for _, c := range call[agentv1.StatusReply](t, vm, "status", &agentv1.StatusRequest{}).GetContainers() {
		if c.GetContainer() == key {
			return c
		}
	}
	return nil
}

func streamsAreExact(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "io", sh("cat; echo done >&2; seq 1 20000; exit 3"))
	ct.start(t)
	ct.Input("hello\n")
	ct.CloseInput()
	if code := exit(t, ct.Relay); code != 3 {
		t.Errorf("exit code %d", code)
	}
	var want strings.Builder
	want.WriteString("hello\n")
	for i := 1; i <= 20000; i++ {
		fmt.Fprintln(&want, i)
	}
	if ct.Output() != want.String() || ct.ErrOutput() != "done\n" {
		t.Errorf("got %d bytes of output, want %d; errors %q", len(ct.Output()), want.Len(), ct.ErrOutput())
	}
	ct.delete(t)
}

func looksLikeDocker(t *testing.T, vm *vmtest.VM) {
	p := sh(`echo pid=$$ host=$(hostname); id -u; id -G; cat /proc/self/status | grep -E "^(NoNewPrivs|Seccomp|CapEff):" | tr -d "\t"
echo to-stderr > /dev/stderr; echo to-stdout > /dev/stdout
ls /dev | tr "\n" " "; echo; cat /proc/1/cgroup; mount | grep -c "/sys/fs/cgroup type cgroup2"; cat /proc/sys/net/ipv4/ip_unprivileged_port_start
ls /sys/class/net; cat /proc/kcore | wc -c; touch /proc/sys/kernel/x 2>&1; nproc; cat /proc/self/oom_score_adj; ulimit -n; touch /tmp/mine`)
	p.Args[2] = strings.ReplaceAll(p.Args[2], "tr -d", "busybox tr -d")
	p.Args[2] = strings.ReplaceAll(p.Args[2], "| tr ", "| busybox tr ")
	p.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{27, 44}}
	p.NoNewPrivileges = true
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1234, Hard: 2345}}
	ct := create(t, vm, "look", p)
	ct.start(t)
	code := exit(t, ct.Relay)
	out := ct.Output()
	var mine unix.Stat_t
	if err := unix.Stat(filepath.Join(vm.Share, "look/rootfs/tmp/mine"), &mine); err != nil || mine.Uid != 1000 || mine.Gid != 1000 {
		t.Errorf("a file of uid 1000 is owned by %d:%d on the host, %v", mine.Uid, mine.Gid, err)
	}
	for _, want := range []string{
		"pid=1 host=c0ffee\n", "\n1000\n1000 27 44\n", "NoNewPrivs:1", "Seccomp:2", "CapEff:0000000000000000",
		"to-stdout\n", "full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero", "0::/containers/look\n1\n0\n", "lo\n", "\n0\n", "\n1234\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the container's view lacks %q", want)
		}
	}
	if !strings.Contains(ct.ErrOutput(), "to-stderr\n") {
		t.Errorf("/dev/stderr cannot be reopened: %q", ct.ErrOutput())
	}
	if t.Failed() {
		t.Logf("exit code %d, output:\n%s\nerrors:\n%s", code, out, ct.ErrOutput())
	}
	ct.delete(t)
}

func failuresLeaveNothing(t *testing.T, vm *vmtest.VM) {
	for i, c := range []struct {
		p      *specs.Process
		change func(*specs.Spec)
		reason bus.Reason
		says   string
	}{
		{process("no-such-program"), nil, bus.Internal, `exec: "no-such-program": executable file not found in $PATH`},
		{process("/etc"), nil, bus.Internal, `exec: "/etc": `},
		{process("/tmp/plain"), nil, bus.Internal, `exec: "/tmp/plain": permission denied`},
		{process("/bin/missing"), nil, bus.Internal, `exec: "/bin/missing": stat /bin/missing: no such file or directory`},
		{process("true"), func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
		}, bus.InvalidArgument, "no uid mappings found"},
		{process("true"), func(s *specs.Spec) { s.Linux.Sysctl["no.such.parameter"] = "1" }, bus.InvalidArgument, "no.such.parameter"},
	} {
		key := fmt.Sprintf("bad%d", i)
		busyboxRootfs(t, vm, key)
		if err := os.WriteFile(filepath.Join(vm.Share, key, "rootfs/tmp/plain"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		change := func(*specs.Spec) {}
		if c.change != nil {
			change = c.change
		}
		ct, err := tryCreate(t, vm, key, c.p, change)
		if err == nil {
			t.Errorf("%v: create succeeded", c.p.Args)
			ct.delete(t)
			continue
		}
		if got := bus.ReasonOf(err); got != c.reason || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %s: %v; want %s and %q", c.p.Args, got, err, c.reason, c.says)
		}
		if infoOf(t, vm, key) != nil {
			t.Errorf("%v: the failed container is still there", c.p.Args)
		}
	}
	ct := create(t, vm, "twice", process("sleep", "1000"))
	if _, err := tryCreateAgain(t, vm, "twice"); bus.ReasonOf(err) != bus.AlreadyExists || !strings.Contains(err.Error(), "container with given ID already exists") {
		t.Errorf("second create: %v", err)
	}
	if _, err := ct.tryExec(t, "e", process("no-such")); err == nil || !strings.Contains(err.Error(), `exec: "no-such": executable file not found in $PATH`) {
		t.Errorf("exec of a missing program: %v", err)
	}
	nowhere := process("true")
	nowhere.Cwd = "/no/such"
	if _, err := ct.tryExec(t, "e", nowhere); err == nil || !strings.Contains(err.Error(), `chdir to cwd ("/no/such") set in config.json failed: no such file or directory`) {
		t.Errorf("exec in a missing directory: %v", err)
	}
	if n := len(infoOf(t, vm, "twice").GetProcesses()); n != 1 {
		t.Errorf("%d processes after a failed exec", n)
	}
	ct.delete(t)
	for _, method := range []func() error{
		func() error {
			_, err := ask[agentv1.StartReply](t, vm, "start", &agentv1.StartRequest{Container: "nobody"})
			return err
		},
		func() error {
			_, err := ask[agentv1.SignalReply](t, vm, "signal", &agentv1.SignalRequest{Container: "nobody", Signal: 9})
			return err
		},
	} {
		if err := method(); bus.ReasonOf(err) != bus.NotFound || !strings.Contains(err.Error(), "container does not exist") {
			t.Errorf("unknown container: %v", err)
		}
	}
}

func tryCreateAgain(t *testing.T, vm *vmtest.VM, key string) (*agentv1.CreateReply, error) {
	return ask[agentv1.CreateReply](t, vm, "create", &agentv1.CreateRequest{
		Container: key, Config: marshal(t, dockerSpec(t, process("true"))), Channel: vm.NewRelay().Channel, Rootfs: key + "/rootfs",
	})
}

func execs(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "exec", process("sleep", "1000"))
	ct.start(t)
	e := ct.exec(t, "e1", sh("cat; echo $0 $$; exit 5"))
	e.Input("in\n")
	e.CloseInput()
	if code := exit(t, e); code != 5 || !strings.HasPrefix(e.Output(), "in\nsh ") {
		t.Errorf("exec ended with %d and %q", code, e.Output())
	}
	long := ct.exec(t, "e2", process("sleep", "1000"))
	if _, err := ct.tryExec(t, "e2", process("true")); bus.ReasonOf(err) != bus.AlreadyExists {
		t.Errorf("second exec of the same name: %v", err)
	}
	if info := infoOf(t, vm, "exec"); info.GetStatus() != "running" || len(info.GetProcesses()) != 3 {
		t.Errorf("status is %v", info)
	}
	// The kernel counts the threads that an execve(2) ended until it has freed them.
	stats := call[agentv1.StatsReply](t, vm, "stats", &agentv1.StatsRequest{Container: "exec"})
	for end := time.Now().Add(10 * time.Second); stats.GetPids() > 2 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		stats = call[agentv1.StatsReply](t, vm, "stats", &agentv1.StatsRequest{Container: "exec"})
	}
	if stats.GetPids() != 2 || stats.GetMemoryBytes() == 0 || stats.GetCpuNs() == 0 {
		t.Errorf("stats are %v", stats)
	}
	all, err := vmv1.ReadContainerStats(stats.GetStats())
	if err != nil || all.Pids.Current != stats.GetPids() || all.CPU.Usage.Total == 0 || all.Memory.Raw["anon"] == 0 || all.Hugetlb["2MB"].Usage != 0 {
		t.Errorf("all counters are %s, %v", stats.GetStats(), err)
	}
	ct.signal(t, 9)
	if code := exit(t, ct.Relay); code != 137 {
		t.Errorf("init ended with %d", code)
	}
	if code := exit(t, long); code != 137 {
		t.Errorf("the exec ended with %d when its container was killed", code)
	}
	if _, err := ct.tryExec(t, "e3", process("true")); err == nil || !strings.Contains(err.Error(), "cannot exec in a stopped container") {
		t.Errorf("exec in a stopped container: %v", err)
	}
	ct.delete(t)
}

func hundredExecs(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "many", process("sleep", "1000"))
	ct.start(t)
	begin := time.Now()
	for i := range 100 {
		e := ct.exec(t, fmt.Sprint(i), sh(fmt.Sprintf("echo %d; exit %d", i, i%120)))
		if code := exit(t, e); code != i%120 || e.Output() != fmt.Sprintln(i) {
			t.Fatalf("exec %d ended with %d and %q", i, code, e.Output())
		}
	}
	t.Logf("%v per exec", time.Since(begin)/100)
	ct.delete(t)
}

func parallelExecs(t *testing.T, vm *vmtest.VM) {
	ct := create(t, vm, "parallel", process("sleep", "1000"))
	ct.start(t)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range 8 {
		wg.Go(func() {
			e, err := ct.tryExec(t, fmt.Sprint(i), sh(fmt.Sprintf("sleep 0.1; echo %d; exit %d", i, i)))
			if err != nil {
				t.Error(err)
				return
			}
			if code, err := e.Wait(within(t)); err != nil || code != i || e.Output() != fmt.Sprintln(i) {
				t.Errorf("exec %d ended with %d, %v and %q", i, code, err, e.Output())
			}
		})
	}
	wg.Wait()
	t.Logf("8 in %v", time.Since(begin))
	ct.delete(t)
}
