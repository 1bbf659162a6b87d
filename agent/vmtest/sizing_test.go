// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"strings"
	"testing"

	"bulkhead/agent/vmtest"
	agentv1 "bulkhead/proto/agent/v1"
)

// The kernel gives up on a processor that does not come up in time, as on a busy host under emulation; maxcpus=1
// makes it leave the second one out for certain.
func TestNoContainerRunsBeforeAllProcessorsDo(t *testing.T) {
	vm := vmtest.BootMachine(t, vmtest.Machine{Options: []string{"-smp", "2"}, Parameters: "maxcpus=1"})
	call[agentv1.ConfigureReply](t, vm, "configure", &agentv1.ConfigureRequest{Vm: vmtest.Sandbox, Vcpus: 2})
	ct := create(t, vm, "count", sh("nproc"))
	ct.start(t)
	if code := exit(t, ct.Relay); code != 0 || strings.TrimSpace(ct.Output()) != "2" {
		t.Errorf("nproc ended with %d and printed %q, want 2", code, ct.Output())
	}
}
