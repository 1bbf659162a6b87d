// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package netspace is a network namespace that a process stands in: found by the
// process, never the host's own, entered for single calls.
//
// It imports bus/procstat. The invariant to remember: no thread stays in a
// foreign namespace; one that cannot come back ends.
package netspace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/bus/procstat"
)

// Reasons why there is no namespace to work in.
var (
	ErrProcessGone = errors.New("the process has ended")
	ErrHost        = errors.New("that is the network of the host, which is never touched")
	ErrGone        = errors.New("the network namespace is gone")
)

// netlinkTimeout bounds one exchange with the kernel, which answers in
// microseconds unless somebody holds its network lock.
const netlinkTimeout = 10 * time.Second

// ID is which namespace one is: the file on nsfs.
type ID struct{ Device, Inode uint64 }

// Namespace is an open network namespace. It is kept alive by being open.
type Namespace struct {
	ID        ID
	PID       int32  // of the process it was found by; 0 when it was found otherwise
	StartTime uint64 // of that process

	file    *os.File
	process *os.File // a pidfd; nil when found otherwise
	nl      *netlink.Handle
}

// Open opens the namespace of process pid, which started at start (field 22 of
// /proc/<pid>/stat; 0 takes whichever process it is).
func Open(pid int32, start uint64) (*Namespace, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("process %d: a process id is more than 0", pid)
	}
	pidfd, err := unix.PidfdOpen(int(pid), unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: %w", pid, ErrProcessGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	process := os.NewFile(uintptr(pidfd), "pidfd")
	found, err := startTime(pid)
	if err == nil && start != 0 && found != start {
		err = fmt.Errorf("process %d: %w; its number is another one's now", pid, ErrProcessGone)
	}
	var file *os.File
	if err == nil {
		file, err = openOf(pid)
	}
	if err == nil && ended(process) { // the number may have passed on between the two
		file.Close()
		err = fmt.Errorf("process %d: %w", pid, ErrProcessGone)
	}
	if err != nil {
		process.Close()
		return nil, err
	}
	n, err := newNamespace(file)
	if err != nil {
		process.Close()
		return nil, fmt.Errorf("the network namespace of process %d: %w", pid, err)
	}
	n.PID, n.StartTime, n.process = pid, found, process
	return n, nil
}

// openOf opens the file of the namespace that a process is in.
func openOf(pid int32) (*os.File, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("process %d: %w", pid, ErrProcessGone)
	case errors.Is(err, fs.ErrPermission):
		return openWithoutPtrace(pid)
	case err != nil:
		return nil, fmt.Errorf("open a network namespace: %w", err)
	}
	return file, nil
}

// newNamespace takes file over, also when it fails.
func newNamespace(file *os.File) (*Namespace, error) {
	n := &Namespace{file: file}
	var err error
	if n.ID, err = idOf(file); err == nil && isHost(n.ID) {
		err = ErrHost
	}
	if err == nil {
		err = n.Do(func() error {
			n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
			return err
		})
	}
	if err == nil {
		err = n.nl.SetSocketTimeout(netlinkTimeout)
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Netlink is a route socket within the namespace.
func (n *Namespace) Netlink() *netlink.Handle { return n.nl }

// Do runs fn on a thread that is in the namespace. What fn starts is not.
func (n *Namespace) Do(fn func() error) error { return within(n.file, fn) }

// Close lets go of the namespace.
func (n *Namespace) Close() {
	if n.nl != nil {
		n.nl.Close()
	}
	if n.process != nil {
		n.process.Close()
	}
	n.file.Close()
}

// within runs fn in the namespace of file, on a thread of its own goroutine: one
// that does not find back ends with it.
func within(file *os.File, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open the service's own network namespace: %w", err)
			return
		}
		defer own.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		err = fn()
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

func idOf(file *os.File) (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return ID{}, fmt.Errorf("look at a network namespace: %w", err)
	}
	return ID{Device: st.Dev, Inode: st.Ino}, nil
}

// own is the namespace that the service was started in. It is read as the program
// starts: a thread's may be another one for moments later.
var own = func() ID {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/net", &st) != nil {
		return ID{}
	}
	return ID{Device: st.Dev, Inode: st.Ino}
}()

// isHost tells whether a namespace is the service's own or that of the host's
// first process, where that may be looked at. Without knowing its own it takes
// every one for the host's.
func isHost(id ID) bool {
	if own == (ID{}) || id == own {
		return true
	}
	var st unix.Stat_t
	return unix.Stat("/proc/1/ns/net", &st) == nil && id == ID{Device: st.Dev, Inode: st.Ino}
}

// startTime is when a process started (field 22 of /proc/<pid>/stat).
func startTime(pid int32) (uint64, error) {
	stat, err := procstat.Read("/proc", int(pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, fmt.Errorf("process %d: %w", pid, ErrProcessGone)
	}
	if err != nil {
		return 0, fmt.Errorf("read the start of process %d: %w", pid, err)
	}
	return stat.Start, nil
}
