// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Mirror makes the mounts beneath a followed directory in the share of the
// process that vm names those that the host has there. It is called after the
// directory was attached and after each change of the host's mount table.
//
// This is not the kernel's own propagation on purpose: that would show a
// hypervisor mounts without nodev, nosuid and noexec, and the host could not
// unmount what a guest has open.
func Mirror(ctx context.Context, vm *os.File, f Followed) error {
	if err := mirror(ctx, vm, f); err != nil {
		return fmt.Errorf("mounts of the host beneath %s: %w", f.Source, err)
	}
	return nil
}

func mirror(ctx context.Context, vm *os.File, f Followed) error {
	if err := checkPath(f.Place); err != nil {
		return err
	}
	pid, err := pidOf(vm)
	if err != nil {
		return err
	}
	own, err := mountTable("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	host, err := f.onHost(own)
	if err != nil {
		return err
	}
	theirs, err := mountTable(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return err
	}
	attached, err := f.attached(theirs)
	if err != nil {
		return err
	}
	takeOff, putOn := differences(host, attached)
	var errs []error
	for _, rel := range takeOff {
		errs = append(errs, inNamespace(vm, func() error { return takeOffAt(f.Place, rel) }))
	}
	for _, m := range putOn {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, f.putOn(vm, m))
	}
	return errors.Join(errs...)
}

// putOn clones a mount of the host and attaches the clone at its place in the VM.
// That the host has unmounted it meanwhile is no error: the table has changed
// again, and Mirror will be called for that.
func (f Followed) putOn(vm *os.File, m mirrored) error {
	clone, err := cloneMount(m)
	if errors.Is(err, errMountGone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.point, err)
	}
	defer unix.Close(clone)
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	}
	if f.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(clone, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("restricting a clone of %s: %w", m.point, err)
	}
	err = inNamespace(vm, func() error {
		place, err := openAttached(f.Place, m.rel)
		if err != nil {
			return err
		}
		defer unix.Close(place)
		return unix.MoveMount(clone, "", place, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
	if err != nil {
		return fmt.Errorf("attaching %s: %w", m.point, err)
	}
	return nil
}

// errMountGone says that a mount is no longer what the table said.
var errMountGone = errors.New("the mount is gone")

// cloneMount clones one mount of the host, without what is mounted upon it. The
// path may lead through directories that a guest can write: no symbolic link is
// followed, and what is found must be that very mount.
func cloneMount(m mirrored) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, m.point, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return -1, errMountGone
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return -1, err
	}
	if st.Mnt_id != m.id || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return -1, errMountGone // or covered by another: then that is what is seen there
	}
	return unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
}

// openAttached opens a place beneath an attached tree. The guest may have
// changed what is there, but not to something outside of the tree.
func openAttached(place, rel string) (int, error) {
	tree, err := unix.Openat2(unix.AT_FDCWD, path.Join(ExportDir, place), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, err
	}
	defer unix.Close(tree)
	return unix.Openat2(tree, rel, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// takeOffAt detaches the uppermost mount at a place beneath an attached tree. What the
// guest has open there stays usable to it until it is closed.
func takeOffAt(place, rel string) error {
	// umount2 takes no descriptor, and a path through the tree could lead
	// elsewhere: it is named from its own directory. This thread has a working directory of its own.
	dir, err := openAttached(place, path.Dir(rel))
	if err != nil {
		return fmt.Errorf("detaching %s: %w", rel, err)
	}
	defer unix.Close(dir)
	if err := unix.Fchdir(dir); err != nil {
		return fmt.Errorf("detaching %s: %w", rel, err)
	}
	if err := unix.Unmount(path.Base(rel), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("detaching %s: %w", rel, err)
	}
	return nil
}

func mountTable(file string) ([]mountEntry, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading a mount table: %w", err)
	}
	return parseMountinfo(string(text))
}

// pidOf reads which process a pidfd names.
func pidOf(pidfd *os.File) (int, error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("using the vm's pidfd: %w", err)
	}
	var text []byte
	var readErr error
	err = raw.Control(func(fd uintptr) { text, readErr = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)) })
	if err := errors.Join(err, readErr); err != nil {
		return 0, fmt.Errorf("using the vm's pidfd: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		var pid int
		if n, _ := fmt.Sscanf(line, "Pid:\t%d", &pid); n == 1 && pid > 0 {
			return pid, nil
		}
	}
	return 0, errors.New("the vm's process has ended")
}
