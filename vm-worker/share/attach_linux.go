// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Where a jail keeps the share. Both names are one tmpfs: StageDir is writable,
// so that directories can be made; ExportDir, the one the guest sees, is
// mounted read-only, so that a guest can neither fill it nor plant links in it.
const (
	StageDir  = "/.stage"
	ExportDir = "/share"
)

const (
	maxDepth     = 8   // components of a path below the share
	maxStacked   = 16  // mounts on one another that Detach takes off
	maxComponent = 255 // bytes of one component
)

// ErrInvalidPath says that a path does not lie below the share.
var ErrInvalidPath = errors.New("not a path below the share")

// ErrAttached says that something is attached already where a mount should go.
var ErrAttached = errors.New("something is attached there already")

// Attach attaches the detached mount at rel below the share of the process
// that vm, a pidfd, names. The directories are made; so is the leaf, a
// directory or an empty file as isDir says. The attached tree is private, and
// nodev, nosuid and noexec: the guest kernel sees device nodes, set-uid bits and
// programs through 9p all the same, while a hypervisor that was taken over
// cannot use those of the host. On an error nothing new is left behind but
// directories, which Detach removes.
func Attach(ctx context.Context, vm, mount *os.File, rel string, isDir, readOnly bool) error {
	if err := checkPath(rel); err != nil {
		return fmt.Errorf("attaching a mount at %q: %w", rel, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("attaching a mount at %q: %w", rel, err)
	}
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("attaching a mount at %q: restricting it: %w", rel, err)
	}
	err := inNamespace(vm, func() error { return attach(int(mount.Fd()), rel, isDir) })
	if err != nil {
		return fmt.Errorf("attaching a mount at %q: %w", rel, err)
	}
	return nil
}

// Detach detaches every mount at or below prefix from the share of the process
// that vm names, and removes the directories and files made for them. That
// nothing is there is no error. It does not wait for the guest to let go.
func Detach(ctx context.Context, vm *os.File, prefix string) error {
	if err := checkPath(prefix); err != nil {
		return fmt.Errorf("detaching the mounts at %q: %w", prefix, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("detaching the mounts at %q: %w", prefix, err)
	}
	if err := inNamespace(vm, func() error { return detach(prefix) }); err != nil {
		return fmt.Errorf("detaching the mounts at %q: %w", prefix, err)
	}
	return nil
}

func checkPath(rel string) error {
	if !fs.ValidPath(rel) || rel == "." || strings.Count(rel, "/") >= maxDepth || strings.ContainsRune(rel, 0) {
		return ErrInvalidPath
	}
	for part := range strings.SplitSeq(rel, "/") {
		if len(part) > maxComponent {
			return ErrInvalidPath
		}
	}
	return nil
}

// inNamespace runs do on a thread of its own inside the mount namespace that of
// names: a pidfd of a process in it, or its own descriptor. The thread is
// discarded: a thread that has been elsewhere must never serve other goroutines.
func inNamespace(of *os.File, do func() error) error {
	// Fd would make the descriptor blocking, and its owner may wait on it.
	raw, err := of.SyscallConn()
	if err != nil {
		return fmt.Errorf("using the vm's descriptor: %w", err)
	}
	return onOwnThread(func() error {
		// A thread shares its root and working directory with its process
		// until it says otherwise, and setns refuses to change shared ones.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("preparing a thread: %w", err)
		}
		var entered error
		err := raw.Control(func(fd uintptr) { entered = unix.Setns(int(fd), unix.CLONE_NEWNS) })
		if err = errors.Join(err, entered); err != nil {
			return fmt.Errorf("entering the mount namespace of the vm: %w", err)
		}
		return do()
	})
}

// onOwnThread runs do on a thread that ends with it. It is never the process's
// first one: that cannot end, would hold the namespace for ever and show it as
// the process's own in /proc/self.
func onOwnThread(do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked after do: the runtime ends the thread with the goroutine
		if unix.Gettid() != unix.Getpid() {
			result <- do()
			return
		}
		err := onOwnThread(do) // elsewhere, while this goroutine keeps the first thread
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

func attach(mount int, rel string, isDir bool) error {
	stage, err := unix.Open(StageDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the stage: %w", err)
	}
	defer unix.Close(stage)
	dir, name := path.Split(rel)
	parent, err := makeDirs(stage, strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := makeLeaf(parent, name, isDir); err != nil {
		return err
	}
	if err := moveMount(mount, rel); err != nil {
		flags := 0
		if isDir {
			flags = unix.AT_REMOVEDIR
		}
		_ = unix.Unlinkat(parent, name, flags)
		return err
	}
	return nil
}

// makeDirs makes and opens the directories of dir below the stage.
func makeDirs(stage int, dir string) (int, error) {
	at, err := unix.Dup(stage)
	if err != nil {
		return -1, err
	}
	if dir == "" {
		return at, nil
	}
	for part := range strings.SplitSeq(dir, "/") {
		if err := unix.Mkdirat(at, part, 0o711); err != nil && !errors.Is(err, unix.EEXIST) {
			unix.Close(at)
			return -1, fmt.Errorf("making directory %q: %w", part, err)
		}
		next, err := openBeneath(at, part, unix.O_PATH|unix.O_DIRECTORY)
		unix.Close(at)
		if err != nil {
			return -1, fmt.Errorf("opening directory %q: %w", part, err)
		}
		at = next
	}
	return at, nil
}

func makeLeaf(parent int, name string, isDir bool) error {
	var err error
	if isDir {
		err = unix.Mkdirat(parent, name, 0o711)
	} else {
		err = unix.Mknodat(parent, name, unix.S_IFREG|0o600, 0)
	}
	if errors.Is(err, unix.EEXIST) {
		return ErrAttached
	}
	if err != nil {
		return fmt.Errorf("making the place: %w", err)
	}
	return nil
}

func moveMount(mount int, rel string) error {
	export, err := unix.Open(ExportDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the share: %w", err)
	}
	defer unix.Close(export)
	// NO_XDEV also keeps a path from leading into an attached tree.
	place, err := openBeneath(export, rel, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("opening the place: %w", err)
	}
	defer unix.Close(place)
	err = unix.MoveMount(mount, "", place, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("moving the mount into the share: %w", err)
	}
	return nil
}

func openBeneath(dir int, name string, flags uint64) (int, error) {
	return unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
}

func detach(prefix string) error {
	dir, name := path.Split(prefix)
	exportPath, stagePath := path.Join(ExportDir, dir), path.Join(StageDir, dir)
	return removeTree(exportPath, stagePath, name, maxDepth)
}

// removeTree takes down name, seen at both paths of its parent. The namespace's
// own tmpfs is walked, never an attached tree: what is attached is detached
// before its place is opened, and only the worker ever wrote to that tmpfs.
func removeTree(exportParent, stageParent, name string, depth int) error {
	if depth == 0 {
		return fmt.Errorf("%s is nested deeper than anything attached here", stageParent)
	}
	exported, staged := path.Join(exportParent, name), path.Join(stageParent, name)
	isDir, err := unmountAll(exported)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if !isDir {
		return ignoreAbsent(unix.Unlink(staged))
	}
	entries, err := os.ReadDir(staged)
	if err != nil {
		return fmt.Errorf("reading %s: %w", staged, err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, removeTree(exported, staged, e.Name(), depth-1))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return ignoreAbsent(unix.Rmdir(staged))
}

// unmountAll detaches what is mounted at p and tells whether p is a directory.
func unmountAll(p string) (isDir bool, err error) {
	for range maxStacked {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
		if err != nil {
			return false, err
		}
		if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
			return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
		}
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return false, fmt.Errorf("detaching %s: %w", p, err)
		}
	}
	return false, fmt.Errorf("more than %d mounts are stacked at %s", maxStacked, p)
}

func ignoreAbsent(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
