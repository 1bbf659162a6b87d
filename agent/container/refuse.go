// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A refusal is one property of the specification that is not done in the guest,
// and the sentence that says so.
type refusal struct {
	asked bool
	name  string
	why   string
}

func firstRefusal(list []refusal) error {
	for _, r := range list {
		if r.asked {
			return fmt.Errorf("%w: %s %s", ErrInvalid, r.name, r.why)
		}
	}
	return nil
}

const (
	whyHostKernel = "belongs to the host's kernel and does not exist in the guest"
	whyCgroup2    = "does not exist in cgroup v2, which the guest uses"
	whyAppArmor   = "is not supported: the guest's kernel has no AppArmor"
)

// refuseSpec refuses, by name, what the guest cannot do (OCI runtime-spec v1.3,
// config.md and config-linux.md).
func refuseSpec(spec *specs.Spec) error {
	if err := firstRefusal([]refusal{
		{spec.Root == nil, "root", "is missing"},
		{spec.Solaris != nil, "solaris", "is for another operating system"},
		{spec.Windows != nil, "windows", "is for another operating system"},
		{spec.ZOS != nil, "zos", "is for another operating system"},
		{spec.FreeBSD != nil, "freebsd", "is for another operating system"},
		{spec.VM != nil, "vm", "is not supported: the host chooses the kernel, the image and the hypervisor"},
	}); err != nil {
		return err
	}
	if spec.Process != nil {
		if err := refuseProcess(spec.Process); err != nil {
			return err
		}
	}
	if spec.Linux != nil {
		return refuseLinux(spec.Linux)
	}
	return nil
}

// refuseProcess checks the process of a container and of an exec alike.
func refuseProcess(p *specs.Process) error {
	return firstRefusal([]refusal{
		{len(p.Args) == 0, "process.args", "must not be empty"},
		{p.Cwd == "", "process.cwd", "must not be empty"},
		{p.Cwd != "" && !path.IsAbs(p.Cwd), "process.cwd", fmt.Sprintf("%q must be an absolute path", p.Cwd)},
		{p.CommandLine != "", "process.commandLine", "is for another operating system"},
		{p.User.Username != "", "process.user.username", "is for another operating system; use uid and gid"},
		{p.ApparmorProfile != "" && p.ApparmorProfile != "unconfined", "process.apparmorProfile", whyAppArmor},
		{slices.ContainsFunc(append([]string{p.Cwd}, append(p.Args, p.Env...)...), hasNul), "process", "has a NUL byte in cwd, args or env"},
	})
}

func hasNul(s string) bool { return strings.IndexByte(s, 0) >= 0 }

func refuseLinux(l *specs.Linux) error {
	for _, ns := range l.Namespaces {
		if _, known := namespaceFiles[ns.Type]; !known && ns.Type != specs.MountNamespace {
			return fmt.Errorf("%w: linux.namespaces %q is not supported", ErrInvalid, ns.Type)
		}
	}
	user := hasNamespace(l, specs.UserNamespace)
	if err := firstRefusal([]refusal{
		{!user && len(l.UIDMappings) > 0, "linux.uidMappings", "is not supported without a user namespace"},
		{!user && len(l.GIDMappings) > 0, "linux.gidMappings", "is not supported without a user namespace"},
		{len(l.TimeOffsets) > 0 && !hasNamespace(l, specs.TimeNamespace), "linux.timeOffsets", "is not supported without a time namespace"},
		{l.IntelRdt != nil, "linux.intelRdt", whyHostKernel},
		{l.RootfsPropagation == "runbindable", "linux.rootfsPropagation runbindable", "leaves nothing that could be bound into the root; use unbindable"},
		{l.MemoryPolicy != nil, "linux.memoryPolicy", "is not supported: the guest has one memory node"},
		{len(l.NetDevices) > 0, "linux.netDevices", whyHostKernel},
		{l.Personality != nil && len(l.Personality.Flags) > 0, "linux.personality.flags", "has no flag that the specification defines"},
		{l.Seccomp != nil && l.Seccomp.ListenerPath != "", "linux.seccomp.listenerPath", "is not supported: a socket of the host cannot receive the guest's descriptors"},
		{l.Seccomp != nil && l.Seccomp.ListenerMetadata != "", "linux.seccomp.listenerMetadata", "is not supported"},
	}); err != nil {
		return err
	}
	if l.Resources != nil {
		return refuseResources(l.Resources)
	}
	return nil
}

// refuseResources refuses the limits that cgroup v2 in the guest cannot hold. A
// zero is what engines write for "not asked for".
func refuseResources(r *specs.LinuxResources) error {
	if m := r.Memory; m != nil {
		if err := firstRefusal([]refusal{
			{positive(m.Kernel), "linux.resources.memory.kernel", whyCgroup2},
			{positive(m.KernelTCP), "linux.resources.memory.kernelTCP", whyCgroup2},
			{m.Swappiness != nil, "linux.resources.memory.swappiness", whyCgroup2},
			{isTrue(m.DisableOOMKiller), "linux.resources.memory.disableOOMKiller", whyCgroup2},
			{m.UseHierarchy != nil && !*m.UseHierarchy, "linux.resources.memory.useHierarchy false", whyCgroup2},
		}); err != nil {
			return err
		}
	}
	if c := r.CPU; c != nil {
		if err := firstRefusal([]refusal{
			{c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0, "linux.resources.cpu.realtimeRuntime", whyCgroup2},
			{c.RealtimePeriod != nil && *c.RealtimePeriod != 0, "linux.resources.cpu.realtimePeriod", whyCgroup2},
		}); err != nil {
			return err
		}
	}
	if b := r.BlockIO; b != nil {
		const why = "limits the host's devices and cannot be done in the guest"
		if err := firstRefusal([]refusal{
			{b.LeafWeight != nil && *b.LeafWeight != 0, "linux.resources.blockIO.leafWeight", why},
		}); err != nil {
			return err
		}
	}
	if err := refuseSettings(r, cgroupMount+"/agent"); err != nil {
		return err
	}
	return firstRefusal([]refusal{
		{r.Network != nil && r.Network.ClassID != nil && *r.Network.ClassID != 0, "linux.resources.network.classID", whyCgroup2},
		{r.Network != nil && len(r.Network.Priorities) > 0, "linux.resources.network.priorities", whyCgroup2},
		{len(r.Rdma) > 0, "linux.resources.rdma", whyHostKernel},
	})
}

// refuseSettings refuses what this kernel's cgroups lack before libcontainer meets
// a missing file, which in its words reads as a missing program. example is a cgroup with every controller.
func refuseSettings(r *specs.LinuxResources, example string) error {
	for name := range r.Unified {
		// The kernel's own files are no limits: a cgroup frozen by one would stop the agent at the next exec (freezer.go).
		if controller, setting, _ := strings.Cut(name, "."); controller == "" || controller == "cgroup" || setting == "" || strings.Contains(name, "/") {
			return fmt.Errorf("%w: linux.resources.unified: %q is not a CONTROLLER.SETTING", ErrInvalid, name)
		}
	}
	if _, err := os.Stat(example); err != nil {
		return nil // not in a guest
	}
	lacks := func(file string) bool {
		_, err := os.Lstat(filepath.Join(example, file))
		return err != nil
	}
	for _, l := range r.HugepageLimits {
		if l.Limit > 0 && lacks("hugetlb."+l.Pagesize+".max") {
			return fmt.Errorf("%w: linux.resources.hugepageLimits: the guest has no huge pages of %q", ErrInvalid, l.Pagesize)
		}
	}
	for name := range r.Unified {
		if lacks(name) {
			return fmt.Errorf("%w: linux.resources.unified: the guest's cgroups have no %q", ErrInvalid, name)
		}
	}
	return nil
}

func positive(v *int64) bool { return v != nil && *v > 0 }
func isTrue(v *bool) bool    { return v != nil && *v }
