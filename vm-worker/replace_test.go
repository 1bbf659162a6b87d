// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"testing"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// dying is a VM of which only the end matters.
type dying struct {
	hypervisor.VM
	kill func() error
}

func (d dying) Kill(context.Context) error { return d.kill() }

func onTrial(vm hypervisor.VM) (*sandbox, *trial) {
	t := newTrial()
	return &sandbox{id: "vm-1", rec: &vmv1.Sandbox{}, vm: vm, trial: t, stopLinks: func() {}}, t
}

// TestASandboxThatEndsGetsNoOtherVM: who ends it and who replaces its VM may meet in any order, and the end of the VM is told
// once: as the sandbox's, or not at all.
func TestASandboxThatEndsGetsNoOtherVM(t *testing.T) {
	t.Parallel()
	killed := 0
	s, first := onTrial(dying{kill: func() error { killed++; return nil }})
	s.closing = true
	if err := s.replace(t.Context()); err == nil || killed != 0 {
		t.Errorf("a sandbox that is being ended has its VM replaced: %v", err)
	}
	s.endTrial(false)
	if !closed(first.ended) || first.replaced {
		t.Error("the end of the VM is not its sandbox's")
	}

	var late *sandbox
	late, second := onTrial(dying{kill: func() error {
		late.endTrial(false) // as whoever ends the sandbox in this moment does
		return nil
	}})
	if err := late.replace(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !closed(second.ended) || !second.replaced || late.machine() != nil {
		t.Error("the end of a VM that is replaced is taken for its sandbox's")
	}

	lasting, third := onTrial(dying{kill: func() error { return errors.New("it does not die") }})
	if err := lasting.replace(t.Context()); err == nil {
		t.Error("a VM that does not die is replaced")
	}
	if !closed(third.ended) || third.replaced || lasting.machine() == nil {
		t.Error("a VM that does not die is not its sandbox's any more")
	}
}
