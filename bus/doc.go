// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package bus is the client side of the bus on which the parts of Bulkhead
// meet: connections, typed calls, services, the agent's end of the guest link,
// errors, state, operations, events and ids.
//
// It imports the contracts in proto and the NATS client, and nothing else of
// ours; it never links nats-server, which lives in bus/server, because the
// command line links this package and must start in milliseconds.
//
// The invariant: commands are request and reply, never queued. A command that
// cannot be delivered now fails now, and a command without an answer has an
// unknown outcome that only the same operation id may ask about again.
package bus
