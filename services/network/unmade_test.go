// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	netv1 "bulkhead/proto/net/v1"
)

func TestALinkThatCannotBeJoinedWaitsLongerEachTime(t *testing.T) {
	t.Parallel()
	a := &attachment{unmade: map[string]*unmade{}}
	link := &netv1.Link{Id: "nic2", Name: "eth0", Mtu: 1500, Up: true}
	last := unmadeMin / 2
	for range 10 {
		wait := a.notMade(link, "why")
		if wait < unmadeMin || wait > unmadeMax || wait != min(2*last, unmadeMax) {
			t.Errorf("it waits %v after %v", wait, last)
		}
		last = wait
	}
	if u := a.unmade["nic2"]; last != unmadeMax || !u.waits(link) {
		t.Errorf("after %v it does not wait", last)
	}
	for name, other := range map[string]*netv1.Link{
		"another MTU": {Id: "nic2", Name: "eth0", Mtu: 1400, Up: true},
		"down":        {Id: "nic2", Name: "eth0", Mtu: 1500},
	} {
		if a.unmade["nic2"].waits(other) {
			t.Errorf("%s: it is not tried at once", name)
		}
	}
}

func TestALinkThatCouldNotBeJoinedIsTriedAgain(t *testing.T) {
	t.Parallel()
	var attached atomic.Bool
	var failures atomic.Int32
	r := newRig(t, func(d *Deps) {
		d.Log = nil // what is logged is the failure made here
		d.Failpoint = func(step string) error {
			if step == "link-filter" && attached.Load() && failures.Add(1) == 1 {
				return errors.New("netlink: no buffer space available")
			}
			return nil
		}
	}).start()
	inside, outside := newSpace(t), newSpace(t)
	r.attach("box", inside)
	attached.Store(true)
	inside.veth("eth0", outside, "out0")
	inside.run("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0")
	r.watchUntil("box", func(a *netv1.Attachment) bool {
		return slices.ContainsFunc(a.Problems, func(p string) bool { return strings.Contains(p, "no buffer space") })
	})
	r.watchUntil("box", func(a *netv1.Attachment) bool {
		return len(a.Nics) == 1 && len(a.Problems) == 0
	})
}
