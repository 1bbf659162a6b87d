// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
)

// kernelArgs switch SELinux on in the guest of a container that has a label: the agent loads the policy of its image.
// Other guests boot without, which is quicker.
func kernelArgs(selinux bool) []string {
	if !selinux {
		return nil
	}
	return []string{"lsm=selinux", "enforcing=1"}
}

// maxShares bounds the labels of the host's files in one VM: each is a device, on the bus that disks are plugged into.
const maxShares = 8

// takes says whether a further container's labels can be given in the sandbox's VM, and keeps a place for the one of
// its files. The VM was started with SELinux or without.
func (s *sandbox) takes(p *plan) error {
	if !p.labelled() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.rec.Selinux:
		return bus.Errorf(bus.FailedPrecondition,
			"container %s asks for an SELinux label, and its pod's virtual machine runs without SELinux, as its first container asked for none", p.req.Ref.Id)
	case p.mountLabel == "" || slices.Contains(s.rec.MountLabels, p.mountLabel):
		return nil
	case len(s.rec.MountLabels) == maxShares:
		return bus.Errorf(bus.ResourceExhausted,
			"linux.mountLabel %q of container %s: the containers of its virtual machine have %d other labels for their files, and more cannot be had", p.mountLabel, p.req.Ref.Id, maxShares)
	}
	s.rec.MountLabels = append(s.rec.MountLabels, p.mountLabel) // written with the container's own record
	return nil
}

// attachShare plugs in the share that shows the container's files under their label. The first label is that of the share
// which every VM has, whose tag may be left out; a container without one uses it too.
func (s *sandbox) attachShare(ctx context.Context, p *plan) error {
	i := slices.Index(s.record().MountLabels, p.mountLabel)
	if p.mountLabel == "" || i <= 0 {
		return nil
	}
	p.share = "share" + strconv.Itoa(i)
	s.sharing.Lock()
	defer s.sharing.Unlock()
	return s.machine().AttachShare(ctx, p.share)
}

// takesExec refuses a label for a process of a VM without SELinux.
func (s *sandbox) takesExec(p *specs.Process) error {
	if p.SelinuxLabel != "" && !s.record().Selinux {
		return bus.Errorf(bus.FailedPrecondition,
			"process.selinuxLabel %q: the container's virtual machine runs without SELinux, as its first container asked for no label", p.SelinuxLabel)
	}
	return nil
}
