// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package network gives the guest the network that its container has on the host:
// the names, addresses, routes and neighbours of each network card, by netlink.
//
// It may import proto and nothing else of ours. The invariant to remember: what
// the host says is whole and can be said again, and of what is found only what
// this package has put there is ever taken away. The devices, addresses, routes
// and neighbours that a container made itself stay.
package network
