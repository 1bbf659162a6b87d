// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import "bulkhead/vm-worker/hypervisor"

// kind tells the guests apart that templates are made for: what is decided on the
// kernel's command line cannot be changed in a clone.
type kind string

const (
	plainKind   kind = "plain"
	selinuxKind kind = "selinux"
)

func kindOf(selinux bool) kind {
	if selinux {
		return selinuxKind
	}
	return plainKind
}

// base is the machine that templates of a kind are made of, and that every VM
// from one of them begins as: the rest is plugged in, or the guest is told.
func (w *Worker) base(k kind) (hypervisor.Spec, error) {
	accel, reason, err := w.accelerator()
	if err != nil {
		return hypervisor.Spec{}, err
	}
	size := sizeOf([]demand{{}}, w.cfg)
	return hypervisor.Spec{
		Kernel: w.cfg.Kernel, Image: w.cfg.Image,
		VCPUs: size.VCPUs, MemoryBytes: w.baseMemory(), Max: roomFor(size),
		Accelerator: accel, AcceleratorReason: reason,
		KernelArgs: kernelArgs(k == selinuxKind),
	}, nil
}

// clone is the machine of a VM that continues from the plan's template.
func (w *Worker) clone(p *plan) (hypervisor.Spec, error) {
	spec, err := w.base(kindOf(p.labelled()))
	spec.From = p.from
	return spec, err
}
