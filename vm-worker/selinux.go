// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
)

// kernelArgs switch SELinux on in the guest of a container that has a label: the agent loads the policy of its image.
// Other guests boot without, which is quicker.
func (s *sandbox) kernelArgs() []string {
	if !s.record().Selinux {
		return nil
	}
	return []string{"lsm=selinux", "enforcing=1"}
}

// takes says whether a further container's labels can be given in the sandbox's VM: it was started with SELinux or
// without, and its one share of the host's files has one label.
func (s *sandbox) takes(p *plan) error {
	rec := s.record()
	switch {
	case !p.labelled():
		return nil
	case !rec.Selinux:
		return bus.Errorf(bus.FailedPrecondition,
			"container %s asks for an SELinux label, and its pod's virtual machine runs without SELinux, as its first container asked for none", p.req.Ref.Id)
	case p.mountLabel != "" && p.mountLabel != rec.MountLabel:
		return bus.Errorf(bus.FailedPrecondition,
			"linux.mountLabel %q of container %s: the host's files have one label in a virtual machine, and its pod's is %q", p.mountLabel, p.req.Ref.Id, rec.MountLabel)
	}
	return nil
}

// takesExec refuses a label for a process of a VM without SELinux.
func (s *sandbox) takesExec(p *specs.Process) error {
	if p.SelinuxLabel != "" && !s.record().Selinux {
		return bus.Errorf(bus.FailedPrecondition,
			"process.selinuxLabel %q: the container's virtual machine runs without SELinux, as its first container asked for no label", p.SelinuxLabel)
	}
	return nil
}
