// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/agent/vmtest"
)

// TestARehearsalLeavesNoTrace asks the agent, which compares what there is before and after, and looks from a container at the guest
// that has rehearsed and at one that has not.
func TestARehearsalLeavesNoTrace(t *testing.T) {
	rehearsed := vmtest.BootMachine(t, vmtest.Machine{Rehearse: func(dir string) { makeRootfs(t, dir) }})
	if r := rehearsed.Rehearsed; r.GetError() != "" || r.GetRounds() == 0 {
		t.Fatalf("%d containers, then: %q\n%s", r.GetRounds(), r.GetError(), rehearsed.Console())
	}
	t.Logf("%d containers in %v", rehearsed.Rehearsed.GetRounds(), time.Duration(rehearsed.Rehearsed.GetTookNanos()))
	has, wants := seen(t, rehearsed), seen(t, vmtest.Boot(t))
	for _, is := range has {
		if !slices.Contains(wants, is) {
			t.Errorf("the rehearsal has left %q", is)
		}
	}
	for _, was := range wants {
		if !slices.Contains(has, was) {
			t.Errorf("after the rehearsal %q is gone", was)
		}
	}
	if len(wants) < 40 || !slices.Contains(wants, "/tmp/c/containers/look") {
		t.Errorf("the look at the guest sees too little: %q", wants)
	}
}

// TestAGuestWithSELinuxRehearses: its containers have no labels then, as most.
func TestAGuestWithSELinuxRehearses(t *testing.T) {
	vm := vmtest.BootMachine(t, vmtest.Machine{
		Parameters: "lsm=selinux enforcing=1", Rehearse: func(dir string) { makeRootfs(t, dir) },
	})
	if r := vm.Rehearsed; r.GetError() != "" || r.GetRounds() == 0 {
		t.Fatalf("%d containers, then: %q\n%s", r.GetRounds(), r.GetError(), vm.Console())
	}
	// The share is mounted anew, and may have another label.
	c := create(t, vm, "c", sh("id -u"), withoutSeccomp, labelled)
	c.start(t)
	if code := exit(t, c.Relay); code != 0 || c.Output() != "0\n" {
		t.Errorf("a container after the rehearsal ended with %d: %q %q", code, c.Output(), c.ErrOutput())
	}
}

// seen is what a container with all powers sees of its guest, besides itself.
func seen(t *testing.T, vm *vmtest.VM) []string {
	t.Helper()
	all := []string{"CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE"}
	p := sh(`set -e; mkdir /tmp/c /tmp/d; mount -t cgroup2 none /tmp/c; mount -t devtmpfs none /tmp/d
		find /tmp/c -type d; find /tmp/d; for f in agent/cgroup.procs containers/cgroup.procs containers/memory.max containers/memory.high containers/pids.max \
			cgroup.subtree_control containers/cgroup.subtree_control; do sed "s:^:$f :" /tmp/c/$f; done
		for f in /proc/self/net/dev /proc/self/net/route; do cut -d: -f1 $f; done
		for f in sys/kernel/hostname sys/kernel/domainname sys/vm/min_free_kbytes sys/kernel/threads-max sys/fs/file-max; do sed "s:^:$f :" /proc/$f; done`)
	p.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	c := create(t, vm, "look", p, withoutSeccomp, func(s *specs.Spec) { s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil })
	c.start(t)
	if code := exit(t, c.Relay); code != 0 {
		t.Fatalf("looking at the guest ended with %d: %s%s", code, c.Output(), c.ErrOutput())
	}
	return strings.Split(strings.TrimSpace(c.Output()), "\n")
}
