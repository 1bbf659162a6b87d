// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// Guard checks what passes between a VM and its links, in the kernel.
//
// It is called in one place each, with the sandbox's lock held: Attach by
// wire.Join (wireOf, conform.go), when the device stands and nothing is
// joined to it yet, so that no frame passes unchecked, and again after a restart
// of the service, when all of it may be there already; Update when the link's name,
// MAC, MTU or addresses changed (followLinks), or the policy did (permit); Detach when nothing is joined any
// more, also where Attach never was or failed half way, and by a later process
// than the one that attached: whatever Attach leaves is in the kernel and found
// there. Filters of a guard are on the
// discipline clsact, which is there, with a priority below wire.Priority;
// disciplines and devices come and go without it.
type Guard interface {
	Attach(Guarded) error
	Update(Guarded) error
	Detach(Guarded) error
	// Spoofed counts the frames of the VM that were dropped.
	Spoofed(Guarded) (uint64, error)
	// Problems are sentences: what this host cannot check or keep apart.
	Problems(Guarded) []string
}

// Guarded is one NIC, and what of it is to be checked.
type Guarded struct {
	NS *netspace.Namespace
	// Device is the name of the tap or macvtap. What the VM sends comes in by it
	// (ingress), but with model macvtap, where it goes out by it (egress).
	Device string
	// Link is the name of the namespace's link. What arrives for the VM comes in
	// by it (ingress), where packets for sockets of the namespace itself can be
	// kept from being redirected (TC_ACT_OK). Only with model tc; else it is empty.
	Link   string
	Model  string
	Policy *netv1.Policy
	Facts  *netv1.Link // MAC and addresses, as the VM has them
}
