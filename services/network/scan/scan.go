// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package scan reads what a network namespace has, as its VM is to have it.
//
// It imports proto and services/network/netspace. The invariant to remember: it
// changes nothing, and what the VM cannot have is said in a sentence.
package scan

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// OwnAlias begins the alias of every device that the service makes, by which a
// scan leaves it out and a later run knows it.
const OwnAlias = "bulkhead:"

// Result is what a namespace has.
type Result struct {
	Network  *netv1.Network
	Problems []string
	Links    []netlink.Link // of Network.Links, in their order
}

// Options say how to read.
type Options struct {
	// ID gives the id of the link with an index.
	ID func(index int) string
	// MAC is what the link had before the service changed it; "" is what it has.
	MAC func(index int) string
}

// attempts bounds the repeats when the namespace changes while it is read.
const attempts = 5

// Scan reads the namespace. What changes meanwhile is read again.
func Scan(ns *netspace.Namespace, o Options) (*Result, error) {
	var err error
	for range attempts {
		var r *Result
		if r, err = scan(ns, o); err == nil {
			return r, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("the network namespace changes faster than it can be read: %w", err)
}

// reading is one scan under way.
type reading struct {
	ns       *netspace.Namespace
	nl       *netlink.Handle
	o        Options
	ids      map[int]string // of the links that the VM gets, by index
	names    map[int]string // of every link
	own      map[int]bool   // devices that the service made
	problems []string
}

func scan(ns *netspace.Namespace, o Options) (*Result, error) {
	r := &reading{ns: ns, nl: ns.Netlink(), o: o, ids: map[int]string{}, names: map[int]string{}, own: map[int]bool{}}
	out := &Result{Network: &netv1.Network{}}
	var err error
	if out.Network.Links, out.Links, err = r.links(); err != nil {
		return nil, err
	}
	if out.Network.Routes, err = r.routes(); err != nil {
		return nil, err
	}
	if out.Network.Rules, err = r.rules(); err != nil {
		return nil, err
	}
	if out.Network.Neighbours, err = r.neighbours(); err != nil {
		return nil, err
	}
	if out.Network.Listeners, err = Listeners(ns); err != nil {
		r.problem("what listens on loopback addresses cannot be read, so the VM does not reach it: %v", err)
	}
	out.Problems = r.problems
	return out, nil
}

// problem says a sentence once.
func (r *reading) problem(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(r.problems, s) {
		r.problems = append(r.problems, s)
	}
}

// Own tells whether the service made a device.
func Own(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Alias, OwnAlias) }
