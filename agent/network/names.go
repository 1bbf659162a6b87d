// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The words by which iproute2 calls the kernel's numbers; a number stands for
// itself.

var scopes = map[string]netlink.Scope{
	"": netlink.SCOPE_UNIVERSE, "global": netlink.SCOPE_UNIVERSE, "universe": netlink.SCOPE_UNIVERSE,
	"site": netlink.SCOPE_SITE, "link": netlink.SCOPE_LINK, "host": netlink.SCOPE_HOST, "nowhere": netlink.SCOPE_NOWHERE,
}

var scopeNames = map[netlink.Scope]string{
	netlink.SCOPE_UNIVERSE: "global", netlink.SCOPE_SITE: "site", netlink.SCOPE_LINK: "link",
	netlink.SCOPE_HOST: "host", netlink.SCOPE_NOWHERE: "nowhere",
}

func scopeOf(word string) (netlink.Scope, error) { return numberOf(scopes, "scope", word) }

var routeTypes = map[string]int{
	"": unix.RTN_UNICAST, "unicast": unix.RTN_UNICAST, "blackhole": unix.RTN_BLACKHOLE,
	"unreachable": unix.RTN_UNREACHABLE, "prohibit": unix.RTN_PROHIBIT,
}

var routeTypeNames = map[int]string{
	unix.RTN_UNICAST: "unicast", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit",
}

// routerAdvertised is the protocol of routes that the kernel learns by itself.
const routerAdvertised = "ra"

// protocolOf knows the names by which the library prints protocols.
func protocolOf(word string) (netlink.RouteProtocol, error) {
	if word == "" {
		return unix.RTPROT_BOOT, nil
	}
	if n, err := strconv.ParseUint(word, 10, 8); err == nil {
		return netlink.RouteProtocol(n), nil
	}
	for n := range 256 {
		if p := netlink.RouteProtocol(n); p.String() == word {
			return p, nil
		}
	}
	return 0, fmt.Errorf("unknown protocol %q", word)
}

func numberOf[N ~uint8 | ~int](names map[string]N, what, word string) (N, error) {
	if n, ok := names[word]; ok {
		return n, nil
	}
	n, err := strconv.ParseUint(word, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("unknown %s %q", what, word)
	}
	return N(n), nil
}
