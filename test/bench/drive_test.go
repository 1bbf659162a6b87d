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
	"strings"
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
		if err := measure.take(t.Context(), b); err != nil {
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

func TestWhatCannotBeMeasuredDoesNotHideTheRest(t *testing.T) {
	b := runcBench(t, t.Context())
	b.runsc = &runtime{prefix: runscPrefix, binary: "/bin/false", names: runscNames}
	b.only = regexp.MustCompile("^run(c|sc)_(mem|state|echo_rtt)$")
	b.results.only = b.only
	err := b.measure(t.Context())
	if err == nil || !strings.Contains(err.Error(), "memory of the others") || strings.Contains(err.Error(), "echo_rtt") {
		t.Errorf("a runtime that starts nothing gives %v", err)
	}
	for _, name := range []string{"runc_mem", "runc_state", "runc_echo_rtt"} {
		if !slices.Contains(b.results.names, name) {
			t.Errorf("%s was not measured after another could not be", name)
		}
	}
	b.runsc = nil
	if err := b.close(); err != nil {
		t.Error(err)
	}
}

func TestProcessOfAFailedCleanUpIsEnded(t *testing.T) {
	b := runcBench(t, t.Context())
	c, err := b.runc.launch(t.Context(), "stuck", b.bundles.sleep, stdio{})
	if err != nil {
		t.Fatal(err)
	}
	ending := *c
	ending.rt = &runtime{binary: "/bin/false"}
	if err := ending.remove(t.Context()); err == nil || strings.Contains(err.Error(), "did not end") {
		t.Errorf("a clean-up that cannot be gives %v", err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/stuck"); len(left) > 0 {
		t.Errorf("its cgroups are left: %v", left)
	}
	if err := errors.Join(c.delete(t.Context()), b.close()); err != nil {
		t.Error(err)
	}
}
