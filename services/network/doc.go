// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package network is the net service: it will give VMs what engines wire into
// network namespaces. In this version it registers and answers; it attaches
// nothing and touches no interface.
//
// It imports bus and proto and no other service. The invariant to remember: the
// host's own interfaces are never touched.
package network
