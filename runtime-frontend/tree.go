// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tree is a directory or file of the host that is given to a VM.
type tree struct {
	source      string
	destination string
	recursive   bool // with the mounts beneath
	isDir       bool
	// readOnlyOnHost makes the given mount itself read-only, so that not even a
	// guest that broke out of its kernel's rules can write.
	readOnlyOnHost  bool
	readOnlyInGuest bool
}

// open makes a detached copy of the mount (open_tree(2)): it appears in no
// mount table, and ends with the last descriptor.
func (t tree) open() (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_SYMLINK_NOFOLLOW)
	attrFlags := uint(unix.AT_EMPTY_PATH)
	if t.recursive {
		flags |= unix.AT_RECURSIVE
		attrFlags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, t.source, flags)
	if err != nil {
		return nil, fmt.Errorf("opening %q for %s as a detached mount (open_tree, Linux 5.2 or later): %w", t.source, t.destination, err)
	}
	f := os.NewFile(uintptr(fd), t.source)
	// What the bundle's check saw may have been replaced since.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("looking at %q for %s: %w", t.source, t.destination, err)
	}
	if kind := st.Mode & unix.S_IFMT; (kind == unix.S_IFDIR) != t.isDir || kind == unix.S_IFLNK {
		f.Close()
		return nil, fmt.Errorf("%q for %s was replaced by something else while the container was created", t.source, t.destination)
	}
	// The copy of a shared mount is shared too, and what is mounted in one would appear in the other.
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if t.readOnlyOnHost {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", attrFlags, &attr); err != nil {
		f.Close()
		return nil, fmt.Errorf("setting up the detached mount of %q for %s (mount_setattr, Linux 5.12 or later): %w", t.source, t.destination, err)
	}
	return f, nil
}
