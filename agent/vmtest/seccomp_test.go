// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/agent/vmtest"
)

// systemCalls shows each action, operator and flag of a filter, that an exec has the filter of its container, and that
// 32-bit calls are filtered too. Each rule is about a system call that neither the shell nor the C library needs.
func systemCalls(t *testing.T, vm *vmtest.VM) {
	const wrong = 71 // EPROTO, which none of these calls gives
	rule := func(name string, action specs.LinuxSeccompAction, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		call := specs.LinuxSyscall{Names: []string{name}, Action: action, Args: args}
		if action == specs.ActErrno {
			call.ErrnoRet = ptr(uint(wrong))
		}
		return call
	}
	when := func(op specs.LinuxSeccompOperator, value, second uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: 0, Op: op, Value: value, ValueTwo: second}
	}
	filter := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
		Flags:         []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow},
		Syscalls: []specs.LinuxSyscall{
			rule("mkdir", specs.ActErrno),
			rule("getpriority", specs.ActErrno),
			{Names: []string{"sched_rr_get_interval"}, Action: specs.ActErrno},
			rule("getsid", specs.ActKillProcess),
			rule("getpgid", specs.ActKillThread),
			rule("sched_getparam", specs.ActKill),
			rule("ioprio_get", specs.ActTrap),
			rule("sched_getscheduler", specs.ActTrace),
			rule("sched_get_priority_max", specs.ActLog),
			rule("umask", specs.ActErrno, when(specs.OpEqualTo, 7, 0)),
			rule("alarm", specs.ActErrno, when(specs.OpNotEqual, 7, 0)),
			rule("setfsuid", specs.ActErrno, when(specs.OpLessThan, 7, 0)),
			rule("setfsgid", specs.ActErrno, when(specs.OpLessEqual, 7, 0)),
			rule("epoll_create", specs.ActErrno, when(specs.OpGreaterThan, 7, 0)),
			rule("eventfd2", specs.ActErrno, when(specs.OpGreaterEqual, 7, 0)),
			rule("dup", specs.ActErrno, when(specs.OpMaskedEqual, 0xf0, 0x70)),
		},
	}
	with := func(f *specs.LinuxSeccomp) func(*specs.Spec) { return func(s *specs.Spec) { s.Linux.Seccomp = f } }
	withProbe(t, vm, "filter")
	compile(t, "testdata/probe32.c", filepath.Join(vm.Share, "filter/rootfs/bin/probe32"), "-m32", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie")
	ct := create(t, vm, "filter", sh("probe call 140; read x"), with(filter))
	ct.start(t)

	const killed = 128 + 31 // SIGSYS
	for _, c := range []struct {
		promise string
		args    []string
		want    string
		code    int
	}{
		{"errno", []string{"call", "140"}, "error " + strconv.Itoa(wrong) + "\n", 0},
		{"errno, by default", []string{"call", "148"}, "error 1\n", 0},
		{"kill the process", []string{"call", "124"}, "", killed},
		{"kill the process of a thread", []string{"thread", "124"}, "", killed},
		{"kill the thread", []string{"thread", "121"}, "the others live\n", 0},
		{"kill", []string{"call", "143"}, "", killed},
		{"trap", []string{"trap", "252"}, "trapped 252\n", 0},
		{"trace, without a tracer", []string{"call", "145"}, "error 38\n", 0},
		{"log", []string{"call", "146", "1"}, "done\n", 0},
		{"allow", []string{"call", "147", "1"}, "done\n", 0},
		{"equal", []string{"call", "95", "7"}, "error 71\n", 0},
		{"equal, not", []string{"call", "95", "8"}, "done\n", 0},
		{"not equal", []string{"call", "37", "8"}, "error 71\n", 0},
		{"not equal, not", []string{"call", "37", "7"}, "done\n", 0},
		{"less", []string{"call", "122", "6"}, "error 71\n", 0},
		{"less, not", []string{"call", "122", "7"}, "done\n", 0},
		{"less or equal", []string{"call", "123", "7"}, "error 71\n", 0},
		{"less or equal, not", []string{"call", "123", "8"}, "done\n", 0},
		{"greater", []string{"call", "213", "8"}, "error 71\n", 0},
		{"greater, not", []string{"call", "213", "7"}, "done\n", 0},
		{"greater or equal", []string{"call", "290", "7"}, "error 71\n", 0},
		{"greater or equal, not", []string{"call", "290", "6"}, "done\n", 0},
		{"masked", []string{"call", "32", "117"}, "error 71\n", 0},
		{"masked, not", []string{"call", "32", "1"}, "done\n", 0},
	} {
		e := ct.exec(t, "e", process(append([]string{"probe"}, c.args...)...))
		if code := exit(t, e); code != c.code || e.Output() != c.want {
			t.Errorf("%s: ended with %d and %q, want %d and %q", c.promise, code, e.Output()+e.ErrOutput(), c.code, c.want)
		}
	}
	if code := exit(t, ct.exec(t, "e", process("probe32"))); code != wrong {
		t.Errorf("a 32-bit program ended with %d: its mkdir was not filtered", code)
	}
	ct.Input("\n")
	if exit(t, ct.Relay); ct.Output() != "error 71\n" {
		t.Errorf("the init process says %q", ct.Output()+ct.ErrOutput())
	}
	ct.delete(t)

	// A filter for one architecture lets no other in.
	narrow := *filter
	narrow.Architectures = []specs.Arch{specs.ArchX86_64}
	other := create(t, vm, "filter", process("probe32"), with(&narrow))
	other.start(t)
	if code := exit(t, other.Relay); code != killed {
		t.Errorf("a 32-bit program under a 64-bit filter ended with %d, want %d", code, killed)
	}
	other.delete(t)

	// The filter that engines give, with an error number of its own for what it does not list.
	withProbe(t, vm, "default")
	last := create(t, vm, "default", process("probe", "call", "272", "268435456"), func(s *specs.Spec) { // unshare(CLONE_NEWUSER)
		s.Linux.Seccomp.DefaultErrnoRet = ptr(uint(wrong))
	})
	last.start(t)
	if exit(t, last.Relay); last.Output() != "error 71\n" {
		t.Errorf("under Docker's filter unshare says %q", last.Output()+last.ErrOutput())
	}
	last.delete(t)

	// The same list as it was before it had statx and what came later: the set-up of a container must do without.
	for _, p := range []*specs.Process{sh("stat -c %F /bin; probe call 332"), withNoNewPrivileges(sh("stat -c %F /bin; probe call 332"))} {
		old := create(t, vm, "default", p, func(s *specs.Spec) {
			rules := &s.Linux.Seccomp.Syscalls[0]
			rules.Names = slices.DeleteFunc(rules.Names, func(name string) bool { return slices.Contains(youngCalls, name) })
		})
		old.start(t)
		// A kernel says the same of calls younger than a filter.
		if exit(t, old.Relay); old.Output() != "directory\nerror 38\n" && old.Output() != "directory\nerror 1\n" {
			t.Errorf("under an old filter a program says %q", old.Output()+old.ErrOutput())
		}
		old.delete(t)
	}
}

// youngCalls came to engines' lists from 2018 on.
var youngCalls = []string{
	"statx", "openat2", "faccessat2", "fchmodat2", "close_range", "rseq", "clone3", "membarrier", "preadv2", "pwritev2", "epoll_pwait2", "io_pgetevents",
	"io_uring_enter", "io_uring_register", "io_uring_setup", "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "pkey_alloc", "pkey_free", "pkey_mprotect",
	"futex_waitv", "futex_wait", "futex_wake", "futex_requeue", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
	"memfd_secret", "process_madvise", "process_mrelease", "quotactl_fd", "statmount", "listmount", "open_tree_attr", "mseal",
	"mbind", "get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "migrate_pages", "move_pages", "map_shadow_stack", "cachestat",
}

func withNoNewPrivileges(p *specs.Process) *specs.Process {
	p.NoNewPrivileges = true
	return p
}
