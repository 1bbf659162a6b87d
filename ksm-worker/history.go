// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"time"

	ksmv1 "bulkhead/proto/ksm/v1"
)

// historyLength is what is kept of looks: a quarter of an hour of sweeping, or hours of being settled.
const historyLength = 1000

// history keeps the last looks.
type history struct {
	samples []*ksmv1.Sample
	next    int // where the oldest is overwritten, once full
}

func (h *history) add(s *ksmv1.Sample) {
	if len(h.samples) < historyLength {
		h.samples = append(h.samples, s)
		return
	}
	h.samples[h.next] = s
	h.next = (h.next + 1) % historyLength
}

// newest is the time of the last look that was kept.
func (h *history) newest() time.Time {
	if len(h.samples) == 0 {
		return time.Time{}
	}
	return h.samples[(h.next+len(h.samples)-1)%len(h.samples)].Time.AsTime()
}

// last returns the last n in their order; 0 is all.
func (h *history) last(n int) []*ksmv1.Sample {
	all := append(append([]*ksmv1.Sample{}, h.samples[h.next:]...), h.samples[:h.next]...)
	if n > 0 && n < len(all) {
		all = all[len(all)-n:]
	}
	return all
}
