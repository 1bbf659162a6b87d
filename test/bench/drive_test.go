// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"
)

// The way in which runtimes are driven is proved with runc, which needs no VM.
// One after the other: the process has one set of children.

func runcBench(t *testing.T, ctx context.Context) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	b, err := newBench(ctx, options{only: regexp.MustCompile("^" + runcPrefix), quick: true})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEveryTwinIsMeasuredOfRunc(t *testing.T) {
	b := runcBench(t, t.Context())
	for _, measure := range measures {
		if err := measure(t.Context(), b); err != nil {
			t.Error(err)
		}
	}
	if err := b.close(); err != nil {
		t.Error(err)
	}
	for _, name := range twinNames {
		if !slices.Contains(b.results.names, twin(runcPrefix, name)) {
			t.Errorf("%s was not measured", twin(runcPrefix, name))
		}
	}
}

func TestInterruptLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	b := runcBench(t, ctx)
	interrupt := errors.New("interrupted")
	err := b.inIdleContainers(ctx, "state", 3, func(c *container) error {
		cancel(interrupt)
		return c.exec(ctx, b.bundles.exec)
	})
	if err == nil {
		t.Error("an interrupted measure reported no error")
	}
	if err := b.close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(b.dir, "runc")); len(left) > 0 {
		t.Errorf("runc still holds %v", left)
	}
}

func TestProcessThatDoesNotEndIsKilled(t *testing.T) {
	b := runcBench(t, t.Context())
	c, err := b.runc.launch(t.Context(), "long", b.bundles.sleep, stdio{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the end of a process that sleeps came as %v", err)
	}
	c.pid = 0
	if err := errors.Join(c.delete(t.Context()), b.close()); err != nil {
		t.Error(err)
	}
}
