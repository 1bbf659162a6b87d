// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/agent/vmtest"
)

// TestProcessIsWhatTheBundleSays shows each property of a process carried out, for the init process of a container and for an
// exec in another container that has none of them.
func TestProcessIsWhatTheBundleSays(t *testing.T) {
	vm := vmtest.BootMachine(t, vmtest.Machine{Options: []string{"-smp", "2"}})
	plain := create(t, vm, "plain", sh("sleep 600"), withoutSeccomp)
	plain.start(t)
	for _, c := range []struct {
		name   string
		edit   func(*specs.Process)
		script string
		want   string
	}{
		{"user", func(p *specs.Process) { p.User = specs.User{UID: 1234, GID: 4321, AdditionalGids: []uint32{77, 88}} },
			"id -u; id -g; id -G", "1234\n4321\n4321 77 88\n"},
		{"umask", func(p *specs.Process) { p.User.Umask = ptr(uint32(0o27)) }, "umask", "0027\n"},
		{"environment", func(p *specs.Process) { p.Env = append(p.Env, "EMPTY=", "EQUALS=a=b=", "TWICE=1", "TWICE=2") },
			`echo "[$EMPTY][$EQUALS][$TWICE]${UNSET-unset}"; busybox env | grep -c TWICE`, "[][a=b=][2]unset\n1\n"},
		{"working directory that its user cannot enter", func(p *specs.Process) { p.Cwd, p.User.UID = "/root", 1234 }, "pwd", "/root\n"},
		{"five sets of capabilities", func(p *specs.Process) {
			raw := []string{"CAP_NET_RAW"}
			p.User.UID = 1234
			p.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"}, Permitted: raw, Effective: raw, Inheritable: raw, Ambient: raw}
		}, "grep ^Cap /proc/self/status | busybox tr '\\t' ' '",
			"CapInh: 0000000000002000\nCapPrm: 0000000000002000\nCapEff: 0000000000002000\nCapBnd: 0000000000002021\nCapAmb: 0000000000002000\n"},
		{"no new privileges", func(p *specs.Process) { p.NoNewPrivileges = true }, "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"},
		{"score for the OOM killer", func(p *specs.Process) { p.OOMScoreAdj = ptr(-998) }, "cat /proc/self/oom_score_adj", "-998\n"},
		{"I/O priority", func(p *specs.Process) {
			p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 3}
		}, "busybox ionice -p $$", "best-effort: prio 3\n"},
		{"nice value", scheduled(specs.Scheduler{Policy: specs.SchedBatch, Nice: -5}), scheduling, "nice -5 priority 0 policy 3\n"},
		{"first in, first out", scheduled(specs.Scheduler{Policy: specs.SchedFIFO, Priority: 7}), scheduling, "nice 0 priority 7 policy 1\n"},
		{"reset on fork", scheduled(specs.Scheduler{Policy: specs.SchedRR, Priority: 8, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}),
			scheduling + "; sh -c '" + scheduling + "'; true", "nice 0 priority 8 policy 2\nnice 0 priority 0 policy 0\n"},
		{"idle", scheduled(specs.Scheduler{Policy: specs.SchedIdle}), scheduling, "nice 0 priority 0 policy 5\n"},
		{"deadline", scheduled(specs.Scheduler{
			Policy: specs.SchedDeadline, Runtime: 50e6, Deadline: 80e6, Period: 100e6, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork},
		}), scheduling, "nice 0 priority 0 policy 6\n"},
		{"limits", func(p *specs.Process) { p.Rlimits = allLimits() }, "cat /proc/self/limits", wantLimits()},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := sh(c.script)
			c.edit(p)
			busyboxRootfs(t, vm, "init")
			closeRoot(t, vm, "init", "plain")
			init := create(t, vm, "init", p, withoutSeccomp)
			defer init.delete(t)
			init.start(t)
			for who, r := range map[string]*vmtest.Relay{"init": init.Relay, "exec": plain.exec(t, "e", p)} {
				if code := exit(t, r); code != 0 || squeeze(r.Output()) != c.want {
					t.Errorf("%s ended with %d and %q, want %q", who, code, r.Output()+r.ErrOutput(), c.want)
				}
			}
		})
	}
	t.Run("working directory that does not exist", func(t *testing.T) {
		p := sh("pwd")
		p.Cwd = "/not/yet"
		made := create(t, vm, "cwd", p)
		made.start(t)
		if code := exit(t, made.Relay); code != 0 || made.Output() != "/not/yet\n" {
			t.Errorf("init ended with %d and %q: a container's is made", code, made.Output()+made.ErrOutput())
		}
		made.delete(t)
		const want = `chdir to cwd ("/not/yet") set in config.json failed: no such file or directory`
		if _, err := plain.tryExec(t, "cwd", p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("exec: %v, want %q as with runc", err, want)
		}
	})
	t.Run("processors of an exec", func(t *testing.T) {
		const script = "grep Cpus_allowed_list /proc/self/status"
		bound := sh("sleep 600")
		bound.ExecCPUAffinity = &specs.CPUAffinity{Final: "1"}
		ct := create(t, vm, "affinity", bound)
		ct.start(t)
		for want, affinity := range map[string]*specs.CPUAffinity{"1": nil, "0": {Initial: "1", Final: "0"}, "0-1": {Final: "0-7"}} {
			p := sh(script)
			p.ExecCPUAffinity = affinity
			e := ct.exec(t, "e", p)
			if exit(t, e); e.Output() != "Cpus_allowed_list:\t"+want+"\n" {
				t.Errorf("an exec with affinity %v says %q, want %s", affinity, e.Output()+e.ErrOutput(), want)
			}
		}
		p := sh(script)
		p.ExecCPUAffinity = &specs.CPUAffinity{Final: "6"}
		if _, err := ct.tryExec(t, "e", p); err == nil || !strings.Contains(err.Error(), "process.execCPUAffinity.final names none of the 2 processors") {
			t.Errorf("an exec on a processor that does not exist: %v", err)
		}
		ct.delete(t)
	})
	t.Run("execution domain", func(t *testing.T) {
		ct := create(t, vm, "personality", sh("busybox uname -m; read x"), func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		})
		ct.start(t)
		e := ct.exec(t, "e", sh("busybox uname -m"))
		exit(t, e)
		ct.Input("\n")
		exit(t, ct.Relay)
		if ct.Output() != "i686\n" || e.Output() != "i686\n" {
			t.Errorf("init says %q, an exec %q, want i686", ct.Output(), e.Output())
		}
		ct.delete(t)
	})
	t.Run("system calls", func(t *testing.T) { systemCalls(t, vm) })
	plain.signal(t, 9)
	exit(t, plain.Relay)
	plain.delete(t)
}

// scheduling prints what proc(5) says of the shell itself, without a child.
const scheduling = `read -r line < /proc/$$/stat; set -- $line; echo nice ${19} priority ${40} policy ${41}`

func scheduled(s specs.Scheduler) func(*specs.Process) {
	return func(p *specs.Process) { p.Scheduler = &s }
}

// closeRoot makes /root the superuser's alone.
func closeRoot(t *testing.T, vm *vmtest.VM, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if err := os.Chmod(filepath.Join(vm.Share, key, "rootfs/root"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// squeeze reads /proc/self/limits into one line per limit, and leaves other texts alone.
func squeeze(text string) string {
	if !strings.HasPrefix(text, "Limit ") {
		return text
	}
	got := map[string]string{}
	for line := range strings.Lines(text) {
		for _, l := range limits {
			if rest, ok := strings.CutPrefix(line, l.title); ok {
				fields := strings.Fields(rest)
				got[l.name] = fields[0] + " " + fields[1]
			}
		}
	}
	var out strings.Builder
	for _, l := range limits {
		fmt.Fprintln(&out, l.name, got[l.name])
	}
	return out.String()
}

// limits are all those of getrlimit(2), with their names in /proc/self/limits. The hard one of files is above the agent's own.
var limits = []struct {
	name, title string
	soft, hard  uint64
}{
	{"RLIMIT_CPU", "Max cpu time", 1000, 2000},
	{"RLIMIT_FSIZE", "Max file size", 1 << 30, 1 << 31},
	{"RLIMIT_DATA", "Max data size", 1 << 30, 1 << 31},
	{"RLIMIT_STACK", "Max stack size", 1 << 23, 1 << 24},
	{"RLIMIT_CORE", "Max core file size", 1, 2},
	{"RLIMIT_RSS", "Max resident set", 1 << 29, 1 << 30},
	{"RLIMIT_NPROC", "Max processes", 500, 600},
	{"RLIMIT_NOFILE", "Max open files", 123, 1 << 21},
	{"RLIMIT_MEMLOCK", "Max locked memory", 1 << 16, 1 << 17},
	{"RLIMIT_AS", "Max address space", 1 << 32, 1 << 33},
	{"RLIMIT_LOCKS", "Max file locks", 11, 12},
	{"RLIMIT_SIGPENDING", "Max pending signals", 100, 200},
	{"RLIMIT_MSGQUEUE", "Max msgqueue size", 1000, 2000},
	{"RLIMIT_NICE", "Max nice priority", 10, 20},
	{"RLIMIT_RTPRIO", "Max realtime priority", 30, 40},
	{"RLIMIT_RTTIME", "Max realtime timeout", 5e7, 6e7},
}

func allLimits() []specs.POSIXRlimit {
	var all []specs.POSIXRlimit
	for _, l := range limits {
		all = append(all, specs.POSIXRlimit{Type: l.name, Soft: l.soft, Hard: l.hard})
	}
	return all
}

func wantLimits() string {
	var out strings.Builder
	for _, l := range limits {
		fmt.Fprintln(&out, l.name, l.soft, l.hard)
	}
	return out.String()
}

// The agent's own timers are coarse; a container's are the kernel's, also where a program resets them.
func TestTimersOfAContainerAreTheKernelsOwn(t *testing.T) {
	vm := vmtest.Boot(t)
	const look = "cat /proc/self/timerslack_ns; echo 0 >/proc/self/timerslack_ns; cat /proc/self/timerslack_ns"
	const want = "50000\n50000\n"
	c := create(t, vm, "slack", sh(look+"; read x"))
	c.start(t)
	x := c.exec(t, "e", sh(look))
	exit(t, x)
	if got := x.Output(); got != want {
		t.Errorf("the slack of an exec, and what it resets it to: %q instead of %q", got, want)
	}
	c.Input("\n")
	exit(t, c.Relay)
	if got := c.Output(); got != want {
		t.Errorf("the slack of a container, and what it resets it to: %q instead of %q", got, want)
	}
}

// The small program, not the agent, is what a container's process is until it is the container's own; and no container can write
// to it, not even when nobody runs it any more, as libcontainer starts it from an overlay that cannot be written to (CVE-2019-5736).
func TestContainersBeginAsTheSmallProgram(t *testing.T) {
	vm := vmtest.Boot(t)
	program, err := os.Stat(filepath.Join(vmtest.BuildDir, "bulkhead-init"))
	if err != nil {
		t.Fatal(err)
	}
	c := create(t, vm, "small", sh("read x"))
	// Not yet started: its first process is the init. Who looks at that has to be allowed to trace it.
	look := sh("stat -L -c %s /proc/1/exe; stat -L -f -c %t /proc/1/exe; : >/proc/1/exe")
	look.Capabilities.Bounding = append(look.Capabilities.Bounding, "CAP_SYS_PTRACE")
	look.Capabilities.Effective = append(look.Capabilities.Effective, "CAP_SYS_PTRACE")
	look.Capabilities.Permitted = append(look.Capabilities.Permitted, "CAP_SYS_PTRACE")
	x := c.exec(t, "look", look)
	exit(t, x)
	if got, want := x.Output(), fmt.Sprintf("%d\n%x\n", program.Size(), unix.OVERLAYFS_SUPER_MAGIC); got != want {
		t.Errorf("the program of a container that is not started has the size, and is in a file system of the type: %q instead of %q", got, want)
	}
	if said := x.ErrOutput(); !strings.Contains(said, "Read-only file system") { // "Text file busy" would be no more by and by
		t.Errorf("writing to it is not refused for good: %q", said)
	}
	c.delete(t)
}
