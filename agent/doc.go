// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package agent is PID 1 of a guest: it prepares the machine, connects to the
// host over three virtio-serial ports and runs the containers the host asks for.
//
// The host tells whose machine it is by the first message of each session
// (agent.v1.Greeting): a VM that continues from a template learns it when it has
// long been running. The port bulkhead.ctl then carries a bus connection
// (bulkhead.agent.v1 on agent.<sandbox>.rpc.<method>), the port bulkhead.io the
// standard streams, the port bulkhead.net what listens on the host for the guest
// (bus/loopback).
//
// It may import bus and its client-side packages, proto, and the packages
// below it; never a service. The invariant: the agent outlives everything the
// host does to the link, and when it cannot go on it ends the machine, so that the
// host sees a death and never a silence.
package agent
