// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"bulkhead/bus/handover"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
)

// handoverSocket is where the worker takes descriptors, below the run directory.
const handoverSocket = "handover.sock"

// handOver opens the bundle's root file system, bind mounts and block devices and
// gives them to the worker under the token.
func handOver(ctx context.Context, socket, token string, b *bundle.Bundle) ([]*vmv1.HandedMount, []*vmv1.HandedDevice, error) {
	// The root is handed over writable even for root.readonly, which the guest
	// carries out: first it makes the places of the mounts in it, as runc does.
	trees := []tree{{source: b.Rootfs, destination: "/", recursive: true, isDir: true}}
	for _, bind := range b.Binds {
		trees = append(trees, tree{
			source: bind.Source, destination: bind.Destination, recursive: bind.Recursive, isDir: bind.IsDir,
			readOnly: bind.ReadOnly, follow: bind.Follow, idMap: bind.IDMap,
		})
	}
	var (
		files   []*os.File
		mounts  []*vmv1.HandedMount
		devices []*vmv1.HandedDevice
	)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for i, t := range trees {
		f, err := t.open()
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
		followed, err := t.followed()
		if err != nil {
			return nil, nil, err
		}
		memory, err := t.sharedMemory(f)
		if err != nil {
			return nil, nil, err
		}
		mounts = append(mounts, &vmv1.HandedMount{
			Index: uint32(i), Destination: t.destination, ReadOnly: t.readOnly, IsDir: t.isDir, Followed: followed, Memory: memory,
		})
	}
	for _, d := range b.Devices {
		f, readOnly, err := openDevice(d)
		if err != nil {
			return nil, nil, err
		}
		handed := &vmv1.HandedDevice{Index: uint32(len(files)), Major: d.Major, Minor: d.Minor, ReadOnly: readOnly}
		for _, bind := range d.Binds {
			handed.Binds = append(handed.Binds, &vmv1.DeviceBind{Destination: bind.Destination, Mode: bind.Mode, Uid: bind.UID, Gid: bind.GID})
		}
		files = append(files, f)
		devices = append(devices, handed)
	}
	return mounts, devices, handover.Send(ctx, socket, token, files)
}

// openDevice opens a block device of the host. One that the host itself can only
// read is given read-only, as it would be to a container of the host's.
func openDevice(d bundle.Device) (f *os.File, readOnly bool, err error) {
	flags, readOnly := unix.O_RDWR, d.ReadOnly
	if readOnly {
		flags = unix.O_RDONLY
	}
	fd, err := unix.Open(d.Node, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if !readOnly && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS)) {
		readOnly = true
		fd, err = unix.Open(d.Node, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, false, fmt.Errorf("opening the host's block device %s: %s", d.Node, plainErrno(err))
	}
	f = os.NewFile(uintptr(fd), d.Node)
	// What the bundle's check saw may have been replaced since.
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFBLK || int64(unix.Major(st.Rdev)) != d.Major || int64(unix.Minor(st.Rdev)) != d.Minor) {
		err = errors.New("it was replaced by something else while the container was created")
	}
	if err == nil {
		var size int
		if size, err = unix.IoctlGetInt(fd, unix.BLKGETSIZE64); err == nil && size == 0 {
			err = errors.New("it has no medium: its size is 0")
		}
	}
	if err != nil {
		f.Close()
		return nil, false, fmt.Errorf("the host's block device %s: %w", d.Node, err)
	}
	return f, readOnly, nil
}

// plainErrno words an error of the host's so that no engine takes it for one of
// the container's program, whose absence or mode they read out of such words.
func plainErrno(err error) string {
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT):
		return "nothing is attached to it"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "the host refuses it to root, by a device cgroup or a security module"
	case errors.Is(err, unix.EBUSY):
		return "it is in exclusive use"
	}
	return err.Error()
}

// tree is a directory or file of the host that is given to a VM.
type tree struct {
	source      string
	destination string
	recursive   bool // with the mounts beneath
	isDir       bool
	// readOnly makes the given mount itself read-only, so that not even a guest
	// whose kernel was taken over can write.
	readOnly bool
	follow   string // "slave" or "rslave": the worker shows what the host mounts beneath later
	idMap    *bundle.IDMap
}

// followed tells the worker which mounts of the host appear in the container.
// The given copy is private nevertheless, as the worker says why (vm-worker/share).
func (t tree) followed() (*vmv1.Followed, error) {
	if t.follow == "" {
		return nil, nil
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, t.source, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return nil, fmt.Errorf("finding the mount that holds %q for %s: %w", t.source, t.destination, err)
	}
	return &vmv1.Followed{Source: t.source, MountId: st.Mnt_id, Nested: t.follow == "rslave"}, nil
}

func (t tree) replaced() error {
	return fmt.Errorf("%q for %s was replaced by something else while the container was created", t.source, t.destination)
}

// open makes a detached copy of the mount (open_tree(2)): it appears in no
// mount table, and ends with the last descriptor.
func (t tree) open() (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	attrFlags := uint(unix.AT_EMPTY_PATH)
	if t.recursive {
		flags |= unix.AT_RECURSIVE
		attrFlags |= unix.AT_RECURSIVE
	}
	// The links in the path were resolved and judged: one that is there now was put there since.
	place, err := unix.Openat2(unix.AT_FDCWD, t.source, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ELOOP) {
		return nil, t.replaced()
	}
	if err != nil {
		return nil, fmt.Errorf("opening %q for %s (openat2, Linux 5.6 or later): %w", t.source, t.destination, err)
	}
	defer unix.Close(place)
	fd, err := unix.OpenTree(place, "", flags|unix.AT_EMPTY_PATH)
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
		return nil, t.replaced()
	}
	// The copy of a shared mount is shared too, and what is mounted in one would appear in the other.
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if t.readOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", attrFlags, &attr); err != nil {
		f.Close()
		return nil, fmt.Errorf("setting up the detached mount of %q for %s (mount_setattr, Linux 5.12 or later): %w", t.source, t.destination, err)
	}
	if t.idMap != nil {
		if err := mapOwners(f, t.idMap); err != nil {
			f.Close()
			return nil, fmt.Errorf("mapping the owners of the files in %q for %s: %w", t.source, t.destination, err)
		}
	}
	return f, nil
}
