// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	netv1 "bulkhead/proto/net/v1"
)

// What events say, for a person: "eth0 02:42:ac:11:00:02 172.17.0.2/16".

func attachedAttributes(r *netv1.Attachment) map[string]string {
	links := make([]string, 0, len(r.Network.Links))
	for _, l := range r.Network.Links {
		links = append(links, describe(l))
	}
	return map[string]string{
		"model": r.Policy.Model, "links": strings.Join(links, "; "),
		"problems": strings.Join(r.Problems, "; "),
	}
}

func linkAttributes(l *netv1.Link, revision uint64) map[string]string {
	return map[string]string{"link": l.Id, "name": l.Name, "what": describe(l), "revision": strconv.FormatUint(revision, 10)}
}

func describe(l *netv1.Link) string {
	words := []string{l.Name, l.Mac}
	for _, a := range l.Addresses {
		words = append(words, a.Prefix)
	}
	if !l.Up {
		words = append(words, "down")
	}
	return strings.Join(words, " ")
}

// difference names what changed beside links that came or went.
func difference(before, now *netv1.Network) string {
	var what []string
	add := func(name string, a, b int, same bool) {
		if !same {
			what = append(what, fmt.Sprintf("%s (%d, were %d)", name, b, a))
		}
	}
	add("links", len(before.Links), len(now.Links), equal(before.Links, now.Links))
	add("routes", len(before.Routes), len(now.Routes), equal(before.Routes, now.Routes))
	add("rules", len(before.Rules), len(now.Rules), equal(before.Rules, now.Rules))
	add("neighbours", len(before.Neighbours), len(now.Neighbours), equal(before.Neighbours, now.Neighbours))
	add("listeners", len(before.Listeners), len(now.Listeners), equal(before.Listeners, now.Listeners))
	return strings.Join(what, ", ")
}

func equal[M proto.Message](a, b []M) bool {
	return slices.EqualFunc(a, b, func(x, y M) bool { return proto.Equal(x, y) })
}
