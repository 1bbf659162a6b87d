// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// enter makes the calling process what s says. It runs on the leading thread,
// which /proc/<pid> stands for, and which is locked.
func enter(s Setup) error {
	if s.OOMScoreAdj != nil {
		if err := setOOMScore(*s.OOMScoreAdj); err != nil {
			return wrap("setting oom_score_adj to "+strconv.Itoa(*s.OOMScoreAdj), err)
		}
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return wrap("setting the host name "+s.Hostname, err)
		}
	}
	switch {
	case s.JoinMount:
		return joinMount()
	case s.Rootfs != "":
		return newRoot(s)
	}
	return nil
}

// setOOMScore lowers nothing where the host forbids it: without
// CAP_SYS_RESOURCE the score may only rise.
func setOOMScore(n int) error {
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(strconv.Itoa(n)))
	if err == unix.EACCES || err == unix.EPERM {
		return nil
	}
	return err
}

// joinMount enters the mount namespace at MountNSFD with the leading thread
// alone: setns(2) demands a file system context shared with nobody.
func joinMount() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return wrap("leaving the shared file system context", err)
	}
	if err := unix.Setns(MountNSFD, unix.CLONE_NEWNS); err != nil {
		return wrap("entering the container's mount namespace", err)
	}
	return unix.Close(MountNSFD)
}

// newRoot makes s.Rootfs the root of the mount namespace this process was
// started in, and lets go of everything else in it.
func newRoot(s Setup) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return wrap("making the mounts private", err)
	}
	if err := unix.Mount(s.Rootfs, s.Rootfs, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return wrap("binding the root file system "+s.Rootfs, err)
	}
	trees := make([]int, len(s.Mounts))
	for i, m := range s.Mounts {
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			fd = -1 // a source that is gone cannot be shown; the guest's mount decides
		}
		trees[i] = fd
	}
	if err := unix.Chdir(s.Rootfs); err != nil {
		return wrap("entering the root file system "+s.Rootfs, err)
	}
	// Without a second directory: the old root comes to lie on the new one
	// (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return wrap("making "+s.Rootfs+" the root", err)
	}
	// A full procfs must still be visible for mounting another one in a
	// restricted host; do it before the old root goes.
	procErr := mountProc()
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return wrap("letting go of the host's root", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return wrap("entering the new root", err)
	}
	if procErr != nil {
		_ = mountProc()
	}
	for i, fd := range trees {
		if fd >= 0 {
			attach(fd, s.Mounts[i])
			unix.Close(fd)
		}
	}
	if s.ReadOnly {
		if err := unix.Mount("", "/", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return wrap("making the root read-only", err)
		}
	}
	return nil
}

// mountProc lets tools that enter the namespaces list the processes of the
// container's host side, if the image has a place for it.
func mountProc() error {
	return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// attach shows a mount where the image has a place for it. What does not fit is
// left out: the guest has the true mounts, this view serves tools like "podman cp".
func attach(fd int, m Mount) {
	if m.ReadOnly {
		_ = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	_ = unix.MoveMount(fd, "", unix.AT_FDCWD, m.Destination, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// leaveCgroupNS gives the leading thread a cgroup namespace rooted where the
// worker has put the process.
func leaveCgroupNS() error { return unix.Unshare(unix.CLONE_NEWCGROUP) }

// nameProcess makes ps and top show what the container runs.
func nameProcess() {
	if len(os.Args) == 0 || os.Args[0] == "" {
		return
	}
	name := os.Args[0]
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			name = name[i+1:]
			break
		}
	}
	b, err := unix.BytePtrFromString(name)
	if err == nil {
		_ = unix.Prctl(unix.PR_SET_NAME, uintptrOf(b), 0, 0, 0)
		runtime.KeepAlive(b)
	}
}

type setupError struct {
	doing string
	err   error
}

func (e *setupError) Error() string { return e.doing + ": " + e.err.Error() }
func (e *setupError) Unwrap() error { return e.err }

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return &setupError{doing, err}
}

var errNoFrontend = errors.New("the frontend went away")
