// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func testContainer(t *testing.T, cfg Config) *Container {
	t.Helper()
	cfg.Log = hclog.NewNullLogger()
	c, err := NewManager(cfg).reserve("proc")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLeftoversAreNoticed(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	c := testContainer(t, Config{StateDir: state})
	c.share = "/nowhere"
	if left := c.leftovers(); len(left) != 0 {
		t.Errorf("of nothing is left %v", left)
	}
	if err := os.Mkdir(filepath.Join(state, c.key), 0o700); err != nil {
		t.Fatal(err)
	}
	c.cgroup = cgroup(t.TempDir())
	c.share = "/" // every machine has a mount at /proc
	if left := c.leftovers(); !slices.Contains(left, string(c.cgroup)) || !slices.Contains(left, filepath.Join(state, c.key)) || !slices.Contains(left, "/proc") {
		t.Errorf("noticed only %v", left)
	}
}

func TestOnlyTheNamespacesOfWhatRunsAreJoined(t *testing.T) {
	t.Parallel()
	c := testContainer(t, Config{})
	for _, j := range []Join{{Type: "ipc", Container: "unknown"}, {Type: "pid", Container: c.key}} { // the second is still being created
		if _, err := c.m.openJoins([]Join{j}); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "it is not running") {
			t.Errorf("joining %v: %v", j, err)
		}
	}
	if _, err := c.m.openJoins([]Join{{Type: "mount", Container: c.key}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("joining a mount namespace: %v", err)
	}
}

func TestNothingIsLaunchedIntoAFrozenCgroup(t *testing.T) {
	t.Parallel()
	c := testContainer(t, Config{})
	c.status = Running
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	soon, stop := context.WithTimeout(ctx, 20*time.Millisecond)
	defer stop()

	first := newProcess("first", 1)
	if err := c.enter(ctx, first); err != nil {
		t.Fatal(err)
	}
	if err := c.bar(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("frozen while a process is being launched: %v", err)
	}
	c.leave()
	if err := c.bar(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.enter(soon, first); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("launched while the cgroup is being frozen: %v", err)
	}
	c.setFrozen(true)
	c.unbar()
	entered := make(chan error, 3)
	doomed := newProcess("doomed", 2)
	c.execs["doomed"] = doomed
	go func() { entered <- c.enter(ctx, doomed) }()
	if err := c.Signal("doomed", 9); err != nil {
		t.Error(err)
	}
	if err := <-entered; !errors.Is(err, ErrNotRunning) {
		t.Errorf("a killed exec that waited: %v", err)
	}
	go func() { entered <- c.enter(ctx, first) }()
	c.setFrozen(false)
	if err := <-entered; err != nil {
		t.Errorf("after the resume: %v", err)
	}
	c.leave()
}
