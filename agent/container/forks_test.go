// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"math"
	"runtime/debug"
	"testing"
	"time"
)

// TestNothingIsCollectedWhileAProcessIsForked, and forks that overlap without end make room for the collector.
func TestNothingIsCollectedWhileAProcessIsForked(t *testing.T) {
	collects := func() bool { return debug.SetMemoryLimit(-1) < math.MaxInt64 }
	var f forks
	begin := func(ctx context.Context) error { return f.begin(ctx) }
	for range 2 {
		if err := begin(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f.end()
	if collects() {
		t.Error("the collector may begin while a process is forked")
	}
	f.since = f.since.Add(-forksAtOnce)
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := begin(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a fork after too many: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- begin(t.Context()) }()
	f.end()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	f.end()
	if !collects() {
		t.Error("afterwards nothing is collected")
	}
}
