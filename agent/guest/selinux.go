// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	selinuxDir = "/sys/fs/selinux"
	// policyFile is written by deploy/guest/build-image from deploy/guest/selinux.
	policyFile = "/etc/selinux.policy"
	// agentContext is the agent's own domain, apart from the kernel's threads.
	agentContext = "system_u:system_r:bulkhead_agent_t:s0-s0:c0.c1023"
)

// StartSELinux loads the policy, makes the kernel enforce it and starts the agent anew in its own domain, in
// which it returns. Without lsm=selinux on the kernel's command line it does nothing. It is the first thing the
// agent does: a process changes its domain when it executes a program, and only then for all its threads.
func StartSELinux() error {
	for _, m := range mounts {
		if m.target == "/proc" || m.target == "/sys" {
			if err := m.mount(); err != nil {
				return err
			}
		}
	}
	if !selinuxWanted() {
		return nil
	}
	current, err := os.ReadFile("/proc/self/attr/current")
	if err != nil {
		return fmt.Errorf("reading the agent's SELinux domain: %w", err)
	}
	if strings.TrimRight(string(current), "\x00\n") == agentContext {
		return nil
	}
	if err := loadPolicy(); err != nil {
		return err
	}
	return executeAs(agentContext)
}

func selinuxWanted() bool {
	modules, err := CommandLine("lsm")
	return err == nil && slices.Contains(strings.Split(modules, ","), "selinux")
}

func loadPolicy() error {
	if err := unix.Mount("selinuxfs", selinuxDir, "selinuxfs", unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mounting selinuxfs: %w", err)
	}
	policy, err := os.ReadFile(policyFile)
	if err != nil {
		return fmt.Errorf("reading the SELinux policy: %w", err)
	}
	// The kernel takes the policy in one write.
	if err := os.WriteFile(selinuxDir+"/load", policy, 0); err != nil {
		return fmt.Errorf("loading the SELinux policy: %w", err)
	}
	if err := os.WriteFile(selinuxDir+"/enforce", []byte("1"), 0); err != nil {
		return fmt.Errorf("enforcing the SELinux policy: %w", err)
	}
	return nil
}

// executeAs replaces this program by itself in another domain.
func executeAs(context string) error {
	// The domain of the next program is the thread's.
	runtime.LockOSThread()
	if err := os.WriteFile("/proc/thread-self/attr/exec", []byte(context), 0); err != nil {
		return fmt.Errorf("choosing the agent's SELinux domain %s: %w", context, err)
	}
	return fmt.Errorf("starting the agent in its SELinux domain: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// SELinux says whether the guest enforces a policy.
func SELinux() bool {
	enforce, err := os.ReadFile(selinuxDir + "/enforce")
	return err == nil && string(enforce) == "1"
}

// KnowsLabel asks the policy whether it has a label's user, role, type and categories.
func KnowsLabel(label string) bool {
	return os.WriteFile(selinuxDir+"/context", append([]byte(label), 0), 0) == nil
}
