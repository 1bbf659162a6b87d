// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"sync"
	"time"
)

// stats counts what an endpoint did.
type stats struct {
	mu       sync.Mutex // guards all below
	requests int
	errors   int
	last     string
	spent    time.Duration
}

type statsSnapshot struct {
	requests, errors int
	last             string
	spent, average   time.Duration
}

func (s *stats) add(d time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	s.spent += d
	if err != nil {
		s.errors++
		s.last = string(ReasonOf(err)) + ": " + cleanText(err.Error(), maxHeaderText)
	}
}

func (s *stats) snapshot() statsSnapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := statsSnapshot{requests: s.requests, errors: s.errors, last: s.last, spent: s.spent}
	if s.requests > 0 {
		v.average = s.spent / time.Duration(s.requests)
	}
	return v
}
