// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const asPID1 = "BULKHEAD_REAPER_TEST"

// TestMain runs the scenario instead of the tests when it is PID 1 of the namespace that a test made.
func TestMain(m *testing.M) {
	name := os.Getenv(asPID1)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := scenario(name); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func scenario(name string) error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r := New()
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	if err := scenarios[name](ctx, r); err != nil {
		return err
	}
	cancel()
	return <-done
}

var scenarios = map[string]func(context.Context, *Reaper) error{
	"storm":                   storm,
	"starts that never pause": neverPause,
	"failed start":            failedStart,
}

func TestReaperAsPID1(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a PID namespace")
	}
	for name := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), asPID1+"="+name)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Unshareflags: unix.CLONE_NEWNS}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}

// storm starts processes that leave orphans, from many goroutines, and checks that
// every owner gets the exit code of its own process and no dead child is left.
func storm(ctx context.Context, r *Reaper) error {
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for i := range 16 {
		wg.Go(func() {
			for n := range 10 {
				want := (i*10 + n) % 100
				if err := runOwned(r, fmt.Sprintf("(sleep 0.0%d &) ; (true &) ; exit %d", n, want), want); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		return err
	}
	return noChildren(ctx, r, 160)
}

// runOwned does what libcontainer does: it forks, names the pid when the start is over, and waits later.
func runOwned(r *Reaper, script string, want int) error {
	start := r.Begin()
	cmd := exec.Command("sh", "-c", script)
	if err := cmd.Start(); err != nil {
		start.Finish(0)
		return err
	}
	start.Finish(cmd.Process.Pid)
	defer r.Release(cmd.Process.Pid)
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("the exit status of %q was stolen: %w", script, err)
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		return fmt.Errorf("%q ended with %d, want %d", script, got, want)
	}
	return nil
}

// neverPause keeps at least one start under way all the time: orphans must be collected nevertheless.
func neverPause(ctx context.Context, r *Reaper) error {
	held := r.Begin()
	for range 20 {
		next := r.Begin()
		held.Finish(0)
		held = next
		if err := runOwned(r, "(true &) ; (true &) ; exit 3", 3); err != nil {
			return err
		}
	}
	for r.Reaped() == 0 {
		next := r.Begin()
		held.Finish(0)
		held = next
		if ctx.Err() != nil {
			return errors.New("no orphan was collected while starts overlapped")
		}
		if err := runOwned(r, "exit 0", 0); err != nil {
			return err
		}
	}
	held.Finish(0)
	return noChildren(ctx, r, 1)
}

// failedStart leaves a child that nobody will wait for.
func failedStart(ctx context.Context, r *Reaper) error {
	start := r.Begin()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := awaitZombie(ctx, cmd.Process.Pid); err != nil {
		return err
	}
	if n := r.Reaped(); n != 0 {
		return errors.New("a child was collected while its start was under way")
	}
	start.Finish(0)
	return noChildren(ctx, r, 1)
}

func awaitZombie(ctx context.Context, pid int) error {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		return err
	}
	return ctx.Err()
}

// noChildren waits until the kernel says that there is no child, dead or alive.
func noChildren(ctx context.Context, r *Reaper, atLeast uint64) error {
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.ECHILD) {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond): // waiting for a child's absence: the kernel has no event for it
		case <-ctx.Done():
			left, _ := exec.Command("ps", "-ef").Output()
			return fmt.Errorf("children are left:\n%s", strings.TrimSpace(string(left)))
		}
	}
	if got := r.Reaped(); got < atLeast {
		return fmt.Errorf("%d orphans were collected, want at least %d", got, atLeast)
	}
	return nil
}
