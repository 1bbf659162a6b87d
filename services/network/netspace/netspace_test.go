// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package netspace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newProcess is a process in a network namespace of its own.
func newProcess(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("cat") // ends with the test, which holds its input
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	_, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestAnOverrunOfEventsIsAReasonToLook(t *testing.T) {
	t.Parallel()
	cmd := newProcess(t)
	ns, err := Open(int32(cmd.Process.Pid), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	events, err := ns.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	var batch strings.Builder
	for i := range 8000 { // several times what the buffer holds
		fmt.Fprintf(&batch, "addr add 10.%d.%d.%d/32 dev lo\n", 1+i>>16, i>>8&255, i&255)
	}
	ip := exec.Command("nsenter", "-t", fmt.Sprint(cmd.Process.Pid), "-n", "ip", "-batch", "-")
	ip.Stdin = strings.NewReader(batch.String())
	if out, err := ip.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	overrun := false
	for !overrun {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		err := events.Wait(ctx)
		cancel()
		if err != nil {
			t.Fatalf("after %d events: %v", 8000, err)
		}
		overrun = events.Overruns > 0
	}
	if out, err := exec.Command("nsenter", "-t", fmt.Sprint(cmd.Process.Pid), "-n", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := events.Wait(ctx); err != nil {
		t.Errorf("nothing is told after an overrun: %v", err)
	}
}

func TestWhatTheKernelLearnsOfNeighboursIsNoChange(t *testing.T) {
	t.Parallel()
	message := func(kind, state byte) []byte {
		m := make([]byte, 28) // struct nlmsghdr, struct ndmsg
		m[0], m[4], m[16+8] = 28, kind, state
		return m
	}
	const newNeigh, delNeigh, newLink, reachable, permanent = 28, 29, 16, 0x02, 0x80
	for _, c := range []struct {
		name    string
		batch   []byte
		matters bool
	}{
		{"learned", message(newNeigh, reachable), false},
		{"set for good", message(newNeigh, permanent), true},
		{"removed", message(delNeigh, 0), true},
		{"a link", message(newLink, 0), true},
		{"a link after a neighbour", append(message(newNeigh, reachable), message(newLink, 0)...), true},
		{"cut short", message(newNeigh, reachable)[:17], true},
	} {
		if got := matters(c.batch); got != c.matters {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestAProcessThatEndsIsNoticed(t *testing.T) {
	t.Parallel()
	cmd := newProcess(t)
	ns, err := Open(int32(cmd.Process.Pid), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if again, err := Open(int32(cmd.Process.Pid), ns.StartTime); err != nil || again.ID != ns.ID {
		t.Errorf("opened again: %v, %v", again, err)
	} else {
		again.Close()
	}
	if _, err := Open(int32(cmd.Process.Pid), ns.StartTime+1); !errors.Is(err, ErrProcessGone) {
		t.Errorf("a process of the same number was taken for another one: %v", err)
	}
	brief, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if ns.Ended(brief) {
		t.Error("a process that lives has ended")
	}
	other, err := Open(int32(cmd.Process.Pid), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_ = cmd.Process.Kill()
	if !other.Ended(t.Context()) {
		t.Error("the end of a process is not noticed")
	}
	_ = cmd.Wait()
	if _, err := Open(int32(cmd.Process.Pid), 0); !errors.Is(err, ErrProcessGone) {
		t.Errorf("a process that has ended: %v", err)
	}
	if _, err := Find(ns.ID); !errors.Is(err, ErrGone) {
		t.Errorf("a namespace without a process or a mount was found: %v", err)
	}
}

func TestANamespaceThatAMountPinsIsFoundWithoutAProcess(t *testing.T) {
	t.Parallel()
	cmd := newProcess(t)
	ns, err := Open(int32(cmd.Process.Pid), 0)
	if err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(t.TempDir(), "a pin") // the space is escaped in mountinfo
	if err := os.WriteFile(pin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), pin, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(pin, unix.MNT_DETACH) })
	id := ns.ID
	ns.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	found, err := Find(id)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if found.ID != id || found.PID != 0 {
		t.Errorf("found %v of process %d, want %v of none", found.ID, found.PID, id)
	}
	listed := false
	All(func(ns *Namespace) {
		listed = listed || ns.ID == id
		ns.Close()
	})
	if !listed {
		t.Error("it is not among all namespaces")
	}
}

func TestTheHostsNamespaceIsNeverOpened(t *testing.T) {
	t.Parallel()
	if _, err := Open(1, 0); !errors.Is(err, ErrHost) {
		t.Errorf("opened the namespace of process 1: %v", err)
	}
	if _, err := openWithoutPtrace(1); !errors.Is(err, ErrHost) {
		t.Errorf("opened the namespace of process 1 by the way without CAP_SYS_PTRACE: %v", err)
	}
	All(func(ns *Namespace) {
		defer ns.Close()
		if isHost(ns.ID) {
			t.Error("the host's namespace is listed")
		}
	})
}

func TestBothWaysOpenTheSameNamespace(t *testing.T) {
	t.Parallel()
	cmd := newProcess(t)
	ns, err := Open(int32(cmd.Process.Pid), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	file, err := openWithoutPtrace(int32(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if id, err := idOf(file); err != nil || id != ns.ID {
		t.Errorf("opened %v, want %v (%v)", id, ns.ID, err)
	}
	// A program that is being started has the tap's descriptor for a moment, too.
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		links, err := ns.Netlink().LinkList()
		if err == nil && len(links) == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("something was left in the namespace: %v, %v", links, err)
		}
	}
}
