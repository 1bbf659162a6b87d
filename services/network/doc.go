// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package network is the net service: it gives VMs what engines wired into the
// network namespaces of their containers. It reads what a namespace has, makes a
// tap there for each link, joins the two, hands the tap's queues to vm-worker,
// and follows what changes. docs/networking.md has the path of a packet.
//
//	netspace   a network namespace: found by a process, entered, listened to
//	scan       what a namespace has, as its VM is to have it
//	wire       the host's side of a NIC: made, joined to a link, taken back
//
// It imports bus and proto and no other service. The invariants to remember: the
// host's own interfaces are never touched, and whatever is made in a namespace
// is on record before, so that whoever comes next can take it back.
package network
