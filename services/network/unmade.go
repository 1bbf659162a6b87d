// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"time"

	netv1 "bulkhead/proto/net/v1"
)

// unmade is a link that could not be joined. What was made of its NIC and taken back
// is a change of the namespace like any other, which has it looked at again: without a
// wait, a link that cannot be joined would be tried without end.
type unmade struct {
	link    *netv1.Link // as it was
	problem string
	wait    time.Duration
	until   time.Time
}

const (
	unmadeMin = time.Second
	unmadeMax = listenerClock // by which the namespace is looked at anyway
)

// waits tells whether it is too early to try a link again: one that is another than
// it was is tried at once.
func (u *unmade) waits(now *netv1.Link) bool {
	return sameForNIC(u.link, now) && u.link.Up == now.Up && time.Now().Before(u.until)
}

// notMade notes that a link could not be joined, and tells how long it waits.
func (a *attachment) notMade(link *netv1.Link, problem string) time.Duration {
	u := &unmade{link: link, problem: problem, wait: unmadeMin}
	if before := a.unmade[link.GetId()]; before != nil && sameForNIC(before.link, link) {
		u.wait = min(2*before.wait, unmadeMax)
	}
	u.until = time.Now().Add(u.wait)
	a.unmade[link.GetId()] = u
	return u.wait
}
