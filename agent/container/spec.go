// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// cgroupRoot is where the containers' cgroups are, in the guest's hierarchy.
const cgroupRoot = "/containers"

// CgroupDir is the directory of the cgroup that all containers are in.
const CgroupDir = cgroupMount + cgroupRoot

// translation is what a specification means in the guest.
type translation struct {
	config       *configs.Config
	process      *specs.Process            // nil when the specification has none
	sysctl       map[string]string         // written by the agent, not by libcontainer
	weights      []specs.LinuxWeightDevice // of single disks, the same
	takesNetwork bool                      // the guest's network moves into its namespace
	linkSysctl   map[string]string         // files of /proc/sys that are there with the network, and their values
}

// translate turns the host's specification into libcontainer's configuration.
// It changes the specification it is given.
func translate(spec *specs.Spec, key string, layout layout, joined joined) (*translation, error) {
	if err := refuseSpec(spec); err != nil {
		return nil, err
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	rootfs, err := layout.path(layout.rootfs)
	if err != nil {
		return nil, fmt.Errorf("root file system: %w", err)
	}
	spec.Root.Path = rootfs
	if spec.Mounts, err = translateMounts(spec.Mounts, layout); err != nil {
		return nil, err
	}
	if spec.Linux.Devices, err = guestDevices(spec.Linux, "/", layout.disks); err != nil {
		return nil, err
	}
	t := &translation{process: spec.Process}
	if r := spec.Linux.Resources; r != nil {
		r.Devices = layout.disks.guestRules(r.Devices)
		if r.BlockIO, t.weights, err = layout.disks.guestBlockIO(r.BlockIO); err != nil {
			return nil, err
		}
	}
	spec.Linux.CgroupsPath = cgroupRoot + "/" + key
	spec.Linux.Namespaces, t.takesNetwork = guestNamespaces(spec.Linux.Namespaces, joined, layout.ownNetwork)
	if joined.own(specs.UserNamespace) { // the other has none, and engines write mappings all the same
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = nil, nil
	}
	if !hasNamespace(spec.Linux, specs.CgroupNamespace) {
		spec.Mounts = bindOwnCgroup(spec.Mounts, key)
	}
	spec.Linux.Sysctl, t.sysctl = splitSysctl(spec.Linux.Sysctl, hasNamespace(spec.Linux, specs.NetworkNamespace))
	if t.takesNetwork {
		if spec.Linux.Sysctl, t.linkSysctl, err = splitLinkSysctl(spec.Linux.Sysctl); err != nil {
			return nil, err
		}
	}
	guestResources(spec.Linux.Resources)
	spec.Hooks = guestHooks(spec.Hooks)
	trimSeccomp(spec.Linux.Seccomp, hasX32)
	admitSetUp(spec.Linux.Seccomp)
	if spec.Process != nil {
		guestProcess(spec.Process)
	}
	t.config, err = specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: key, Spec: spec})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if t.config.Capabilities == nil {
		// None are asked for, so there are none; libcontainer would leave those of PID 1.
		t.config.Capabilities = &configs.Capabilities{}
	}
	if r := spec.Linux.Resources; r != nil && r.CPU != nil && r.CPU.Shares != nil && *r.CPU.Shares > 0 {
		t.config.Cgroups.Resources.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*r.CPU.Shares)
	}
	return t, nil
}

// guestResources removes the limits that are the host's to hold, where QEMU is
// in the container's cgroup, and that mean nothing in the guest.
func guestResources(r *specs.LinuxResources) {
	if r == nil {
		return
	}
	if c := r.CPU; c != nil {
		// The host's processors and memory nodes by number: the guest has fewer.
		c.Cpus, c.Mems = "", ""
		if c.Idle != nil && *c.Idle != 0 {
			c.Shares = nil // what runs when all else is idle has no weight, and the kernel refuses one
		}
	}
	if m := r.Memory; m != nil && m.Reservation != nil && *m.Reservation < 0 {
		// A reservation is a promise in cgroup v2; "none" is zero there, which libcontainer takes for "as it is".
		m.Reservation = nil
		r.Unified = withSetting(r.Unified, "memory.low", "0")
	}
	if r.BlockIO != nil {
		r.BlockIO.Weight = nil // of the host's disks, on which QEMU works for the container
	}
	maps.DeleteFunc(r.Unified, func(name, _ string) bool {
		return strings.HasPrefix(name, "cpuset.") || strings.HasPrefix(name, "io.")
	})
	// Engines write zeros for the page sizes of the host, which the guest may not have.
	sizes := cgroups.HugePageSizes()
	r.HugepageLimits = slices.DeleteFunc(r.HugepageLimits, func(l specs.LinuxHugepageLimit) bool {
		return l.Limit == 0 && !slices.Contains(sizes, l.Pagesize)
	})
}

func withSetting(unified map[string]string, name, value string) map[string]string {
	with := map[string]string{name: value}
	maps.Copy(with, unified) // what is asked for by its own name comes first
	return with
}

// guestHooks keeps the hooks that run inside the container; the host ran or
// will run the others.
func guestHooks(h *specs.Hooks) *specs.Hooks {
	if h == nil || len(h.StartContainer) == 0 {
		return nil
	}
	return &specs.Hooks{StartContainer: h.StartContainer}
}

// guestProcess removes what means "nothing" and sets what must not be inherited
// from PID 1.
func guestProcess(p *specs.Process) {
	p.ApparmorProfile = ""
	if p.OOMScoreAdj == nil {
		// The agent protects itself from the OOM killer; its children are not spared.
		zero := 0
		p.OOMScoreAdj = &zero
	}
}

// namespacedSysctls are the kernel parameters that live in the container's own
// IPC or UTS namespace; libcontainer sets them there.
var namespacedSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
	"kernel.shmmni", "kernel.shm_rmid_forced", "kernel.domainname",
}
