// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Kept holds what is attached to the share of a VM, also when the VM has ended. A mount that was attached is that
// VM's: it can be moved nowhere else, and would go with the last process of its namespace.
type Kept struct{ namespace *os.File }

// Keep holds what is attached, and what will be, until Close.
func Keep(vm *os.File) (*Kept, error) {
	pid, err := pidOf(vm)
	if err != nil {
		return nil, fmt.Errorf("keeping the mounts of the vm: %w", err)
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, fmt.Errorf("keeping the mounts of the vm: %w", err)
	}
	if _, err := pidOf(vm); err != nil { // the pid may have been another's by then
		namespace.Close()
		return nil, fmt.Errorf("keeping the mounts of the vm: %w", err)
	}
	return &Kept{namespace}, nil
}

// Again returns a detached mount like the one that is attached at rel, with all beneath it, for Attach. It is the
// caller's to close.
func (k *Kept) Again(ctx context.Context, rel string) (*os.File, error) {
	if err := checkPath(rel); err != nil {
		return nil, fmt.Errorf("cloning the mount at %q: %w", rel, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("cloning the mount at %q: %w", rel, err)
	}
	clone := -1
	err := inNamespace(k.namespace, func() (err error) {
		clone, err = cloneAttached(rel)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cloning the mount at %q: %w", rel, err)
	}
	return os.NewFile(uintptr(clone), rel), nil
}

// Close lets go of the mounts: those of a VM that has ended are no more.
func (k *Kept) Close() error { return k.namespace.Close() }

func cloneAttached(rel string) (int, error) {
	place, err := unix.Openat2(unix.AT_FDCWD, path.Join(ExportDir, rel), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("opening the place: %w", err)
	}
	defer unix.Close(place)
	var st unix.Statx_t
	if err := unix.Statx(place, "", unix.AT_EMPTY_PATH, 0, &st); err != nil {
		return -1, err
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return -1, errors.New("nothing is attached there")
	}
	return unix.OpenTree(place, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
}
