// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package netspace

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// openWithoutPtrace opens the namespace of a process that has more capabilities
// than this one, whose files in /proc the kernel therefore hides. The way needs
// CAP_NET_ADMIN and CAP_SYS_ADMIN alone: a link may be moved into the namespace
// of any process, and a tap tells whoever holds its descriptor where it is.
//
// The tap is made in an empty namespace of its own, not in the host's, and ends
// when this returns. The host's network is told apart before anything moves, by
// the number that the empty namespace has for each of the two.
func openWithoutPtrace(pid int32) (*os.File, error) {
	type outcome struct {
		file *os.File
		err  error
	}
	result := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread()
		file, back, err := moveTapTo(pid)
		if back { // else the thread ends with the goroutine
			runtime.UnlockOSThread()
		}
		result <- outcome{file, err}
	}()
	r := <-result
	if r.err != nil {
		return nil, fmt.Errorf("open the network namespace of process %d without CAP_SYS_PTRACE: %w", pid, r.err)
	}
	return r.file, nil
}

// moveTapTo does it on the calling thread, and tells whether that is where it was.
func moveTapTo(pid int32) (file *os.File, back bool, err error) {
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, true, err
	}
	defer host.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, true, fmt.Errorf("make an empty network namespace: %w", err)
	}
	file, err = moveTapFromHere(pid, host)
	return file, unix.Setns(int(host.Fd()), unix.CLONE_NEWNET) == nil, err
}

func moveTapFromHere(pid int32, host *os.File) (*os.File, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	// Two names for one namespace get one number, whichever comes second.
	const hostNumber, otherNumber = 1, 2
	if err := nl.SetNetNsIdByFd(int(host.Fd()), hostNumber); err != nil {
		return nil, fmt.Errorf("number the host's network namespace: %w", err)
	}
	err = nl.SetNetNsIdByPid(int(pid), otherNumber)
	if errors.Is(err, unix.EEXIST) {
		return nil, ErrHost
	}
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrProcessGone
	}
	if err != nil {
		return nil, fmt.Errorf("number the process's network namespace: %w", err)
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer tun.Close()
	request, err := unix.NewIfreq("bhprobe%d")
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(tun.Fd()), unix.TUNSETIFF, request); err != nil {
		return nil, fmt.Errorf("make a tap: %w", err)
	}
	link, err := nl.LinkByName(request.Name())
	if err != nil {
		return nil, fmt.Errorf("find the tap: %w", err)
	}
	if err := nl.LinkSetNsPid(link, int(pid)); err != nil {
		return nil, fmt.Errorf("move a tap to the process: %w", err)
	}
	fd, err := unix.IoctlRetInt(int(tun.Fd()), unix.TUNGETDEVNETNS)
	if err != nil {
		return nil, fmt.Errorf("ask a tap for its network namespace: %w", err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "net"), nil
}
