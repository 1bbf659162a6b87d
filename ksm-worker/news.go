// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import busv1 "bulkhead/proto/bus/v1"

// news are events that are to be published.
type news chan *busv1.Event

// add never blocks: a bus that is away loses the oldest first. They are returned. Only one may add at a time.
func (n news) add(ev *busv1.Event) (lost []*busv1.Event) {
	for {
		select {
		case n <- ev:
			return lost
		default:
		}
		select {
		case oldest := <-n:
			lost = append(lost, oldest)
		default: // taken meanwhile
		}
	}
}
