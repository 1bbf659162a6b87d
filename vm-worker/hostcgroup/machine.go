// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hostcgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"bulkhead/bus/procstat"
)

// EnterMachine moves the process of a VM from one cgroup into this, and the threads
// that the kernel runs for it: those of KVM (before Linux 6.14) and of vhost-net
// (before 6.4) begin in the cgroup of their process and stay there when it moves.
// They would keep the cgroup that it leaves from being removed.
func (c *Cgroup) EnterMachine(pid int, from *Cgroup) error {
	if err := c.Enter(pid); err != nil || from == nil || c.manager == nil {
		return err
	}
	for _, thread := range from.kernelThreadsOf(pid) {
		// A VM is no less moved without them: the kernel may refuse, and they may have ended.
		_ = c.Enter(thread)
	}
	return nil
}

// kernelThreadsOf are the kernel's threads in the cgroup that a VM's process, which has
// left it, had. Their names end with its number where the kernel tells whole ones; else
// those that nobody else can have are its.
func (c *Cgroup) kernelThreadsOf(pid int) []int {
	var named, nameless []int
	others := false
	for _, id := range c.members() {
		s, err := procstat.Read("/proc", id)
		switch {
		case err != nil: // it has ended
		case !s.Kernel:
			others = true
		case strings.HasSuffix(s.Name, "-"+strconv.Itoa(pid)):
			named = append(named, id)
		case len(s.Name) == maxShortName:
			nameless = append(nameless, id)
		}
	}
	if others {
		return named
	}
	return append(named, nameless...)
}

// maxShortName is how long the name of a kernel's thread is that may have been cut.
const maxShortName = 15

// members are the processes in the cgroup.
func (c *Cgroup) members() []int {
	var ids []int
	for _, file := range c.ProcsPaths() {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for id := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(id); err == nil && n > 0 {
				ids = append(ids, n)
			}
		}
		break // of v1 all hierarchies hold the same
	}
	return ids
}

// ErrKernelThreads says that nothing but threads of the kernel keeps a cgroup from being removed. They end with the VMs
// that they serve.
var ErrKernelThreads = errors.New("threads that the kernel runs for VMs are in it")

// why tells more of a failure to remove the cgroup.
func (c *Cgroup) why(err error) error {
	ids := c.members()
	for _, id := range ids {
		if s, err := procstat.Read("/proc", id); err == nil && !s.Kernel {
			ids = nil
		}
	}
	if len(ids) == 0 {
		return err
	}
	return fmt.Errorf("%w: %w", ErrKernelThreads, err)
}
