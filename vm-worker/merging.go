// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// The kernel merges equal pages of whatever memory is marked mergeable, and cannot be told to keep sets apart. So
// memory of different trust classes is kept apart by marking that of one class alone: [vm] merge_class. This
// holds from the first instruction of a VM to its last, as QEMU is started with it.

// trustClass is the class of a VM for this container alone.
func (p *plan) trustClass() string {
	if p.merging.Class == "" {
		return vmv1.DefaultTrustClass
	}
	return p.merging.Class
}

// mergeable says whether the memory of a VM for this container alone may be merged.
func (p *plan) mergeable(mergeClass string) bool {
	return !p.merging.Off && mergeClass != "" && p.trustClass() == mergeClass
}

// mergesLike refuses a further container that asks for another treatment of its memory than its VM has.
func (s *sandbox) mergesLike(p *plan) error {
	rec := s.record()
	switch {
	case p.merging.Class != "" && p.merging.Class != rec.TrustClass:
		return bus.Errorf(bus.FailedPrecondition,
			"container %s is of trust class %q by annotation %s, and the virtual machine of its pod is of class %q; give the whole pod one class",
			p.req.Ref.Id, p.merging.Class, vmv1.AnnotationTrustClass, rec.TrustClass)
	case p.merging.Off && rec.Mergeable:
		return bus.Errorf(bus.FailedPrecondition,
			"container %s has annotation %s=off, and the memory of its pod's virtual machine may be merged already; give the pod's first container the annotation",
			p.req.Ref.Id, vmv1.AnnotationKSM)
	}
	return nil
}
