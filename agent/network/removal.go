// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"

	"golang.org/x/sys/unix"
)

// takeAway removes what an earlier request has put here and this one does not
// name. What has gone in the meantime, by the container's hand or with its device, is no problem.
func (w *work) takeAway() {
	wanted := map[string]bool{}
	for _, r := range w.wantedRoutes() {
		wanted[r.key] = true
	}
	for key, route := range w.made.routes {
		if !wanted[key] {
			w.refused(unlessGone(w.handle.RouteDel(route)), "to remove the route to %s", route.Dst)
		}
	}
	clear(wanted)
	for _, r := range w.network.GetRules() {
		wanted[identity(r)] = true
	}
	for key, rule := range w.made.rules {
		if !wanted[key] {
			w.refused(unlessGone(w.handle.RuleDel(rule)), "to remove the rule of priority %d", rule.Priority)
		}
	}
	clear(wanted)
	for _, n := range w.network.GetNeighbours() {
		wanted[identity(n)] = true
	}
	for key, neigh := range w.made.neighbours {
		if !wanted[key] {
			w.refused(unlessGone(w.handle.NeighDel(neigh)), "to remove the neighbour %s", neigh.IP)
		}
	}
	for _, link := range w.network.GetLinks() {
		clear(wanted)
		for _, a := range link.GetAddresses() {
			wanted[keyOf(a)] = true
		}
		for key, addr := range w.made.addresses[link.GetId()] {
			if !wanted[key] {
				w.refused(unlessGone(w.handle.AddrDel(w.links[link.GetId()], addr)), "to remove the address %s", addr.IPNet)
			}
		}
	}
}

func unlessGone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
