// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNoSignalIsLostBetweenSetUpAndForeground: one that comes after the last step that could be undone is the process's.
func TestNoSignalIsLostBetweenSetUpAndForeground(t *testing.T) {
	ctx, i := interruptible(context.Background())
	stopped := false
	defer func() {
		if !stopped {
			i.stop()
		}
	}()
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the signal did not end the setting up")
	}
	if err := interrupted(ctx, errors.New("other")); !strings.Contains(err.Error(), "interrupted by SIGTERM, and what was done is undone") {
		t.Errorf("it says %q", err)
	}
	got := make(chan unix.Signal, 8)
	i.forwardTo(func(s unix.Signal) { got <- s })
	if s := <-got; s != unix.SIGTERM {
		t.Errorf("the process got %s first", unix.SignalName(s))
	}
	for _, sig := range []unix.Signal{unix.SIGWINCH, unix.SIGUSR1, unix.SIGINT} {
		if err := unix.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		if sig == unix.SIGWINCH {
			continue // the terminal's size is not the process's signal
		}
		select {
		case s := <-got:
			if s != sig {
				t.Errorf("the process got %s, want %s", unix.SignalName(s), unix.SignalName(sig))
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s is lost", unix.SignalName(sig))
		}
	}
	i.stop()
	stopped = true
	if err := interrupted(context.Background(), errNotFound); !errors.Is(err, errNotFound) {
		t.Errorf("without a signal: %v", err)
	}
}
