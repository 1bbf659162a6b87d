// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	vmv1 "bulkhead/proto/vm/v1"
)

// sharedMemory tells whether a bind mount is the /dev/shm that an engine made for the
// containers that share an IPC namespace: then the guest has a tmpfs of its own in its place, as memory that is
// mapped cannot be shared over 9p. Engines bind the root of a tmpfs of its own, named "shm", and put nothing into it; whatever
// is not just that is a directory of the host like any other, so that nobody misses files.
func (t tree) sharedMemory(f *os.File) (*vmv1.SharedMemory, error) {
	if t.destination != "/dev/shm" || !t.isDir || t.readOnly || t.follow != "" || t.idMap != nil || filepath.Base(t.source) != "shm" {
		return nil, nil
	}
	var fs unix.Statfs_t
	var st, hosts unix.Stat_t
	var mount unix.Statx_t
	err := errors.Join(
		unix.Fstatfs(int(f.Fd()), &fs), unix.Fstat(int(f.Fd()), &st),
		unix.Statx(unix.AT_FDCWD, t.source, unix.AT_SYMLINK_NOFOLLOW, 0, &mount),
	)
	if err != nil {
		return nil, fmt.Errorf("looking at %q for %s: %w", t.source, t.destination, err)
	}
	if fs.Type != unix.TMPFS_MAGIC || mount.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil, nil
	}
	// The host's own is meant when it is named, empty or not.
	if unix.Stat("/dev/shm", &hosts) == nil && hosts.Dev == st.Dev {
		return nil, nil
	}
	dir, err := os.Open(t.source)
	if err != nil {
		return nil, fmt.Errorf("looking into %q for %s: %w", t.source, t.destination, err)
	}
	defer dir.Close()
	if _, err := dir.Readdirnames(1); !errors.Is(err, io.EOF) {
		return nil, err
	}
	return &vmv1.SharedMemory{Device: st.Dev, Inode: st.Ino, SizeBytes: fs.Blocks * uint64(fs.Bsize)}, nil
}
