// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DetachedMemory is a tmpfs that is mounted nowhere (fsopen(2), fsmount(2)).
func DetachedMemory() (*os.File, error) {
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "detached"), nil
}

// Parts gives detached mounts of places in a tree that is mounted nowhere
// (fsmount(2)). Kernels before 6.15 clone only what is mounted in the caller's
// namespace; so it is mounted for a moment, in one that nobody else is in. The
// tree is of no other use after that, and what it holds goes with the parts.
func Parts(tree *os.File, places ...string) (parts []*os.File, err error) {
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("making a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("keeping its mounts to itself: %w", err)
		}
		// Where it is mounted is the same, as all is reached by its descriptor.
		if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mounting the tree: %w", err)
		}
		for _, place := range places {
			fd, err := unix.OpenTree(int(tree.Fd()), place, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			if err != nil {
				return fmt.Errorf("cloning %s of it: %w", place, err)
			}
			parts = append(parts, os.NewFile(uintptr(fd), place))
		}
		return nil
	})
	if err != nil {
		for _, part := range parts {
			_ = part.Close()
		}
		return nil, fmt.Errorf("taking parts of a detached tree: %w", err)
	}
	return parts, nil
}
