// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// metricsOf are the places of a route's metrics, by the names that ip-route(8) gives them.
func metricsOf(r *netlink.Route) map[string]*int {
	return map[string]*int{
		"window": &r.Window, "rtt": &r.Rtt, "rttvar": &r.RttVar, "ssthresh": &r.Ssthresh, "cwnd": &r.Cwnd, "advmss": &r.AdvMSS,
		"reordering": &r.Reordering, "hoplimit": &r.Hoplimit, "initcwnd": &r.InitCwnd, "features": &r.Features, "rto_min": &r.RtoMin,
		"initrwnd": &r.InitRwnd, "quickack": &r.QuickACK, "fastopen_no_cookie": &r.FastOpenNoCookie,
	}
}

func setMetrics(r *netlink.Route, metrics map[string]uint32) error {
	places := metricsOf(r)
	for name, value := range metrics {
		place := places[name]
		if place == nil {
			return fmt.Errorf("unknown metric %q", name)
		}
		*place = int(value)
	}
	return nil
}

// readMetrics is nil for a route with the kernel's own.
func readMetrics(r *netlink.Route) map[string]uint32 {
	var metrics map[string]uint32
	for name, place := range metricsOf(r) {
		if *place == 0 {
			continue
		}
		if metrics == nil {
			metrics = map[string]uint32{}
		}
		metrics[name] = uint32(*place)
	}
	return metrics
}
