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
	if s.JoinMount {
		return joinMount()
	}
	if s.Rootfs != "" {
		if err := mountRoot(s); err != nil {
			return err
		}
	}
	if s.Pause {
		if err := pause(); err != nil {
			return err
		}
	}
	if s.Rootfs != "" {
		return changeRoot(s)
	}
	return nil
}

// pause tells the frontend that everything is mounted and waits for its word.
func pause() error {
	if err := transmit(ControlFD, []byte(Mounted)); err != nil {
		return errNoFrontend
	}
	var word [64]byte
	for {
		n, err := unix.Read(ControlFD, word[:])
		switch {
		case err == unix.EINTR:
		case err != nil || string(word[:n]) != Proceed:
			return errNoFrontend
		default:
			return nil
		}
	}
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

// mountRoot binds s.Rootfs onto itself, with the container's mounts in it, in the
// mount namespace that this process was started in, and makes it the working directory.
func mountRoot(s Setup) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return wrap("making the mounts private", err)
	}
	if err := unix.Mount(s.Rootfs, s.Rootfs, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return wrap("binding the root file system "+s.Rootfs, err)
	}
	if err := unix.Chdir(s.Rootfs); err != nil {
		return wrap("entering the root file system "+s.Rootfs, err)
	}
	mountProc()
	for _, m := range s.Mounts {
		attach(m)
	}
	return nil
}

// changeRoot makes the working directory, which mountRoot has chosen, the root and
// lets go of everything else in the mount namespace.
func changeRoot(s Setup) error {
	// Without a second directory: the old root comes to lie on the new one
	// (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return wrap("making "+s.Rootfs+" the root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return wrap("letting go of the host's root", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return wrap("entering the new root", err)
	}
	if s.ReadOnly {
		if err := unix.Mount("", "/", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return wrap("making the root read-only", err)
		}
	}
	return nil
}

// What is shown below the root serves tools like "podman cp" and hooks; the guest has
// the true mounts. So what the image has no place for is left out.

// mountProc lets tools that enter the namespaces list the processes of the container's
// host side. It comes before the old root goes: a restricted host demands that a full procfs is still
// visible.
func mountProc() {
	place, err := below("proc")
	if err != nil {
		return
	}
	defer unix.Close(place)
	_ = unix.Mount("proc", "/proc/self/fd/"+strconv.Itoa(place), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// attach shows a mount, unless its source is gone.
func attach(m Mount) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if m.ReadOnly {
		_ = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	place, err := below(m.Destination)
	if err != nil {
		return
	}
	defer unix.Close(place)
	_ = unix.MoveMount(fd, "", place, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// below opens a place in the root to come, whatever links the image has laid.
func below(path string) (int, error) {
	return unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
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
