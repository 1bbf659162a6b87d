// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"

	"bulkhead/vm-worker/hypervisor"
)

// ram says where the guest's memory comes from.
type ram int

const (
	// ramOwn is memory of QEMU's own: the VM boots and has nothing to do with templates.
	ramOwn ram = iota
	// ramShared is a file that stays when the VM is gone: a template is being made.
	ramShared
	// ramCloned is the file of a template, of which a page becomes the VM's own when it is written to.
	ramCloned
	// ramZygote is the same, in a QEMU that forks those that run.
	ramZygote
	// ramForked is what a child of one has inherited.
	ramForked
)

// fromState tells whether the VM is given the state of a template when it starts.
func (r ram) fromState() bool { return r == ramCloned || r == ramZygote }

// ramDescriptor is that of the memory's file: the one after the sockets.
var ramDescriptor = 3 + len(sockets)

// machine are its options of the machine.
func (r ram) machine() string {
	if r == ramOwn {
		return ""
	}
	return ",memory-backend=ram"
}

// options are its options beside those, and the firmware.
//
// The firmware of a VM of its own is qboot, which does what a PVH start needs and no more: a tenth
// less work until the guest's init than SeaBIOS (measured under TCG). It hangs on vmgenid, whose
// address it would have to write back. That device tells a guest that it was cloned, with a number of 16
// bytes that is another in each QEMU, and the guest's kernel makes its random generator another at once
// (Documentation/virt: "Virtual Machine Generation ID"; drivers/virt/vmgenid.c). A template is booted once, so there it is worth
// SeaBIOS. QEMU 7.2 can map a file privately only when it may open it for writing; what keeps it from writing
// are the seals.
func (r ram) options(s hypervisor.Spec) []string {
	if r == ramOwn {
		return []string{"-bios", "qboot.rom"}
	}
	o := []string{
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=/proc/self/fd/%d,share=%s",
			memoryMiB(s.MemoryBytes), ramDescriptor, onOff(r == ramShared)),
		"-device", "vmgenid,guid=auto",
	}
	if r.fromState() {
		o = append(o, "-incoming", "defer")
	}
	return o
}
