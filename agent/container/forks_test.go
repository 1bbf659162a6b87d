// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"runtime/debug"
	"testing"
	"time"
)

// TestNothingIsCollectedWhileAProcessIsForked, and forks that overlap without end make room for the collector.
func TestNothingIsCollectedWhileAProcessIsForked(t *testing.T) {
	percent := func() int {
		p := debug.SetGCPercent(-1)
		debug.SetGCPercent(p)
		return p
	}
	before := percent()
	var f forks
	begin := func(ctx context.Context) error { return f.begin(ctx) }
	for range 2 {
		if err := begin(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f.end()
	if got := percent(); got != -1 {
		t.Errorf("while a process is forked the collector begins at %d %%", got)
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
	if got := percent(); got != before {
		t.Errorf("afterwards the collector begins at %d %%, not at %d", got, before)
	}
}
