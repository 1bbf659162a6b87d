// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
)

// watch delivers the agent's events of one topic.
func watch[T proto.Message](t testing.TB, c *bus.Conn, topic string, into chan T) {
	t.Helper()
	sub, err := bus.OnAgentEvent(c, Sandbox, topic, func(event T) {
		select {
		case into <- event:
		default: // a test that does not listen loses hints, as the host may
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
}

// Exits are the exit events that the agent published.
func (vm *VM) Exits() <-chan *agentv1.Exited { return vm.exits }

// Console is what the guest printed.
func (vm *VM) Console() string { return vm.console.String() }

// CPU is the processor time that the VM has used so far.
func (vm *VM) CPU() time.Duration {
	// The CPU clock of a process (clock_getcpuclockid(3)): its pid inverted, above the kind of clock.
	const scheduled = 2
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^vm.pid<<3|scheduled), &used); err != nil {
		vm.t.Fatalf("reading the CPU clock of QEMU: %v", err)
	}
	return time.Duration(used.Nano())
}

// Readies are the ready events after the first.
func (vm *VM) Readies() <-chan *agentv1.Ready { return vm.readies }
