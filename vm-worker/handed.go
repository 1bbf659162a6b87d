// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"os"

	"bulkhead/vm-worker/hypervisor"
)

// handed are the descriptors of a create: detached mounts and block devices. A mount that was attached to a VM is
// that VM's, so it is held until the container is there, and if the VM ends before, a mount like it is taken back.
type handed struct {
	files []*os.File            // by the index that the request names; the create's to close
	given map[int]string        // mounts that were attached: place by index
	kept  hypervisor.KeptMounts // of the VM that has them; nil: none has
}

// errNotKept says that file systems went with their VM.
var errNotKept = errors.New("the container's file systems were that VM's, and went with it")

// keep holds what is attached to the VM from now on. Where that cannot be done, only the second attempt cannot.
func (h *handed) keep(vm hypervisor.VM) error {
	if h.kept != nil {
		return nil
	}
	kept, err := vm.KeepMounts()
	if err == nil {
		h.kept = kept
	}
	return err
}

// file is a descriptor that the request names.
func (h *handed) file(index uint32) (*os.File, bool) {
	if int(index) >= len(h.files) {
		return nil, false
	}
	return h.files[index], true
}

// gave notes that a mount is the VM's.
func (h *handed) gave(index uint32, place string) {
	if h.given == nil {
		h.given = map[int]string{}
	}
	h.given[int(index)] = place
}

// takeBack makes the descriptors what they were before a VM that has ended had them.
func (h *handed) takeBack(ctx context.Context) error {
	if len(h.given) > 0 && h.kept == nil {
		return errNotKept
	}
	for index, place := range h.given {
		again, err := h.kept.Again(ctx, place)
		if err != nil {
			return fmt.Errorf("taking the container's file systems back: %w", err)
		}
		h.files[index].Close()
		h.files[index] = again
		delete(h.given, index)
	}
	return h.release()
}

// release lets the mounts be the VM's alone.
func (h *handed) release() error {
	kept := h.kept
	h.kept = nil
	if kept == nil {
		return nil
	}
	return kept.Close()
}
