// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"testing"

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

// Readies are the ready events after the first.
func (vm *VM) Readies() <-chan *agentv1.Ready { return vm.readies }
