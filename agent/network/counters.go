// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"os"

	"github.com/vishvananda/netlink"

	vmv1 "bulkhead/proto/vm/v1"
)

// Counters counts what went through the devices of a network namespace, nil for the
// agent's own; the loopback is no way out of a container and not among them.
func Counters(namespace *os.File) ([]vmv1.InterfaceStats, error) {
	var links []netlink.Link
	err := inside(namespace, func() (err error) {
		links, err = listLinks()
		return err
	})
	if err != nil {
		return nil, err
	}
	all := []vmv1.InterfaceStats{}
	for _, l := range links {
		s := l.Attrs().Statistics
		if s == nil || l.Attrs().Name == "lo" {
			continue
		}
		all = append(all, vmv1.InterfaceStats{
			Name:    l.Attrs().Name,
			RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
		})
	}
	return all, nil
}
