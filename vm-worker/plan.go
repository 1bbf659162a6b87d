// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"encoding/json"
	"math"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	"bulkhead/bus/config"
	agentv1 "bulkhead/proto/agent/v1"
	netv1 "bulkhead/proto/net/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// plan is what a create request asks for, checked and derived before anything
// is touched.
type plan struct {
	req      *vmv1.CreateRequest
	key      string
	spec     *specs.Spec
	from     hypervisor.Template      // what its VM continues from; nil: it boots
	whyBoot  error                    // then, why
	setback  error                    // why it is not the first VM that was tried
	joins    []*agentv1.NamespaceJoin // set with the VM that it shares
	size     hypervisor.Size          // of a VM for this container alone
	room     hypervisor.Size          // what that VM may grow to
	mounts   []plannedMount
	disks    []plannedDisk
	terminal bool

	oomScoreAdj *int // of the VM's process; nil leaves it as inherited

	processLabel, mountLabel string // SELinux labels; empty: none asked for
	merging                  vmv1.Merging
	policy                   *netv1.Policy // of a VM for this container alone
	ownNetwork               bool          // it shares a VM and not its network; set with the VM that it shares
	share                    string        // tag of the share for the label of its files; empty: the one that every VM has
}

// plannedMount is a handed mount and its place below the guest's share.
type plannedMount struct {
	*vmv1.HandedMount
	source string // relative to the share: <key>/rootfs or <key>/m<index>; empty for shared memory
}

// maxMounts bounds the mounts of one container; a descriptor stands for each.
const maxMounts = 1000

func newPlan(req *vmv1.CreateRequest, cfg config.VM) (*plan, error) {
	ref := req.GetRef()
	if ref.GetId() == "" || !filepath.IsAbs(ref.GetRoot()) {
		return nil, bus.Errorf(bus.InvalidArgument, "create needs a container id and an absolute root, not id %q under %q", ref.GetId(), ref.GetRoot())
	}
	if !filepath.IsAbs(req.Bundle) {
		return nil, bus.Errorf(bus.InvalidArgument, "create of %s needs the absolute path of its bundle, not %q", ref.Id, req.Bundle)
	}
	p := &plan{req: req, key: bus.ContainerKey(ref.Root, ref.Id), spec: &specs.Spec{}}
	if err := json.Unmarshal([]byte(req.Config), p.spec); err != nil {
		return nil, bus.Errorf(bus.InvalidArgument, "config of container %s is not a runtime-spec config: %w", ref.Id, err)
	}
	if p.spec.Root == nil || p.spec.Linux == nil {
		return nil, bus.Errorf(bus.InvalidArgument, "config of container %s needs root and linux", ref.Id)
	}
	if p.spec.Process != nil { // without one the start fails, not the create (runtime-spec, config.md#process)
		p.terminal, p.oomScoreAdj = p.spec.Process.Terminal, p.spec.Process.OOMScoreAdj
		p.processLabel = p.spec.Process.SelinuxLabel
	}
	p.mountLabel = p.spec.Linux.MountLabel
	if p.labelled() && !cfg.SELinux {
		return nil, bus.Errorf(bus.InvalidArgument, "container %s asks for an SELinux label, and [vm] selinux = false switches labels off on this host", ref.Id)
	}
	var err error
	if p.merging, err = vmv1.ReadMerging(p.spec.Annotations); err != nil {
		return nil, bus.Errorf(bus.InvalidArgument, "container %s: %w", ref.Id, err)
	}
	if p.policy, err = netv1.PolicyOf(p.spec.Annotations); err != nil {
		return nil, bus.Errorf(bus.InvalidArgument, "container %s: %w", ref.Id, err)
	}
	if err := p.planMounts(); err != nil {
		return nil, err
	}
	if err := p.planDisks(); err != nil {
		return nil, err
	}
	p.size = sizeOf([]demand{demandOf(p.spec.Linux.Resources, p.spec.Annotations)}, cfg)
	p.room = roomFor(p.size)
	return p, nil
}

// labelled says whether the container asks for SELinux.
func (p *plan) labelled() bool { return p.processLabel != "" || p.mountLabel != "" }

func (p *plan) planMounts() error {
	if n := len(p.req.Mounts); n == 0 || n > maxMounts {
		return bus.Errorf(bus.InvalidArgument, "create hands over %d mounts; it needs the root file system and at most %d", n, maxMounts)
	}
	roots := 0
	for _, m := range p.req.Mounts {
		source := p.key + "/m" + itoa(m.Index)
		if m.Destination == "/" {
			roots++
			source = p.key + "/rootfs"
		} else if !filepath.IsAbs(m.Destination) || strings.ContainsRune(m.Destination, 0) {
			return bus.Errorf(bus.InvalidArgument, "mount destination %q is not an absolute path", m.Destination)
		}
		if f := m.Followed; f != nil && (!m.IsDir || m.Destination == "/" || !filepath.IsAbs(f.Source) || filepath.Clean(f.Source) != f.Source) {
			return bus.Errorf(bus.InvalidArgument, "mount %s cannot follow the mounts of the host beneath %q", m.Destination, f.Source)
		}
		if m.Memory != nil {
			source = ""
		}
		p.mounts = append(p.mounts, plannedMount{m, source})
	}
	if roots != 1 {
		return bus.Errorf(bus.InvalidArgument, "create hands over %d root file systems instead of one", roots)
	}
	return nil
}

// hostMemory is the memory of this host in bytes.
func hostMemory() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return math.MaxInt64 // it has no error but a bad address
	}
	return info.Totalram * uint64(info.Unit)
}
