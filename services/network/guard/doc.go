// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package guard holds the two programs of the kernel (eBPF, put together here,
// without a compiler) that stand between a VM's tap and the link of its network
// namespace. Both are classifiers above the filter that redirects: what they do
// not decide goes on to it.
//
//   - Tap judges what a VM sends: packets whose addresses are not the link's own
//     go no further, nor do those by which a machine takes another one's place
//     (answers of DHCP servers, router advertisements, VLAN tags).
//   - Link judges what comes from outside: packets that belong to a socket of the
//     namespace itself stay there, as engines keep such sockets (Docker's resolver
//     asks the servers of the outside world from within the container's namespace).
//
// The programs live in the kernel, held by their filters: the death of the service
// changes nothing, and the next one finds them again by the filter.
//
// It imports nothing of ours. The invariant to remember: a change of rules takes
// hold without a moment in which an address that is both old and new is refused,
// or in which nothing is checked.
package guard
