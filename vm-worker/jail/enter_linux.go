// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// enter builds the jail around this process and executes the program. It
// returns only with an error.
func enter(c Config, control io.Writer) error {
	// Credentials are a thread's own; the thread that drops them executes.
	runtime.LockOSThread()
	if err := Place("self", "0", c.CgroupProcs, c.OOMScoreAdj); err != nil {
		return err
	}
	if c.Hostname != "" {
		if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
			return fmt.Errorf("naming the jail: %w", err)
		}
	}
	if err := buildRoot(c); err != nil {
		return err
	}
	if err := limit(); err != nil {
		return err
	}
	if c.NoHugePages {
		if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("doing without huge pages: %w", err)
		}
	}
	if c.Mergeable {
		// It outlives exec from Linux 6.9 on, before that it is lost with it.
		if err := unix.Prctl(unix.PR_SET_MEMORY_MERGE, 1, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("letting memory be merged: %w", err)
		}
	}
	unix.Umask(0o022)
	if err := dropCapabilities(c.Capabilities); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up new privileges: %w", err)
	}
	if _, err := io.WriteString(control, ready); err != nil {
		return err
	}
	env := append([]string{"PATH=/usr/bin", "LANG=C"}, c.Env...)
	return fmt.Errorf("executing %s: %w", c.Argv[0], syscall.Exec(c.Argv[0], c.Argv, env))
}

// limit sets what the program may use: every descriptor it can have, because
// the share opens one per file the guest holds, and no core, which would hold
// the guest's memory.
func limit() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("reading the limit of open files: %w", err)
	}
	files.Cur = files.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("raising the limit of open files: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core files: %w", err)
	}
	return nil
}

// dropCapabilities leaves keep in the permitted, effective and bounding sets and
// nothing in the others.
func dropCapabilities(keep []uintptr) error {
	var mask uint64
	for _, c := range keep {
		mask |= 1 << c
	}
	for c := uintptr(0); c < 64; c++ {
		if mask&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the last capability this kernel knows
		}
		if err != nil {
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("dropping ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	for i := range have {
		have[i].Permitted &= uint32(mask >> (32 * i))
		have[i].Effective = have[i].Permitted
		have[i].Inheritable = 0
	}
	if err := unix.Capset(&header, &have[0]); err != nil {
		return fmt.Errorf("dropping capabilities: %w", err)
	}
	return nil
}

// attached is a mount cloned before the jail's root covers its source.
type attached struct {
	fd     int
	target string
	isDir  bool
}

// buildRoot replaces the root of this mount namespace.
func buildRoot(c Config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	links, mounts, err := collect(c)
	if err != nil {
		return err
	}
	if err := mountTmpfs(c.Root, "size=1m,mode=0755"); err != nil {
		return err
	}
	if err := os.Chdir(c.Root); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	for name, target := range links {
		if err := os.Symlink(target, name); err != nil {
			return fmt.Errorf("linking %s: %w", name, err)
		}
	}
	for _, m := range mounts {
		if err := place(m); err != nil {
			return err
		}
	}
	if err := mountProc(); err != nil {
		return err
	}
	if err := mountShare(c); err != nil {
		return err
	}
	// pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the
	// new one and is taken off from there.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("letting go of the host's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr); err != nil {
		return fmt.Errorf("making the root read-only: %w", err)
	}
	return nil
}

// collect clones what the jail shows of the host. links are the host's own
// symbolic links at top level (/lib -> usr/lib).
func collect(c Config) (links map[string]string, mounts []attached, err error) {
	links = map[string]string{}
	binds := []Bind{{Source: "/etc/ld.so.cache", Target: "/etc/ld.so.cache", Optional: true}}
	for _, dir := range []string{"/usr", "/lib", "/lib64", "/lib32", "/libx32"} {
		if to, err := os.Readlink(dir); err == nil {
			links[dir[1:]] = to
			continue
		}
		binds = append(binds, Bind{Source: dir, Target: dir, Optional: dir != "/usr"})
	}
	for _, dev := range append([]string{"/dev/null", "/dev/zero", "/dev/urandom"}, c.Devices...) {
		binds = append(binds, Bind{Source: dev, Target: dev})
	}
	for _, b := range append(binds, c.Binds...) {
		fd, err := unix.OpenTree(unix.AT_FDCWD, b.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if b.Optional && errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("taking %s into the jail: %w", b.Source, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, nil, fmt.Errorf("taking %s into the jail: %w", b.Source, err)
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR {
			attr.Attr_set |= unix.MOUNT_ATTR_NODEV
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return nil, nil, fmt.Errorf("making %s read-only: %w", b.Source, err)
		}
		mounts = append(mounts, attached{fd, "." + b.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR})
	}
	return links, mounts, nil
}

func place(m attached) error {
	defer unix.Close(m.fd)
	var err error
	if m.isDir {
		err = os.MkdirAll(m.target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(m.target), 0o755); err == nil {
		err = os.WriteFile(m.target, nil, 0o444)
	}
	if err == nil {
		err = unix.MoveMount(m.fd, "", unix.AT_FDCWD, m.target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		return fmt.Errorf("placing %s in the jail: %w", m.target, err)
	}
	return nil
}

// mountProc shows the program itself and nothing of the system: it reaches its
// own descriptors through /proc/self/fd.
func mountProc() error {
	if err := os.Mkdir("proc", 0o555); err != nil {
		return fmt.Errorf("making /proc: %w", err)
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("proc", "proc", "proc", flags, "subset=pid"); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	return nil
}

func mountShare(c Config) error {
	if c.Stage == "" {
		return nil
	}
	stage, export := "."+c.Stage, "."+c.Export
	for _, dir := range []string{stage, export} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	if err := mountTmpfs(stage, StageOptions); err != nil {
		return err
	}
	if err := unix.Mount(stage, export, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting the share: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, export, 0, &attr); err != nil {
		return fmt.Errorf("making the share read-only: %w", err)
	}
	return nil
}

func mountTmpfs(dir, options string) error {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
		return fmt.Errorf("mounting a tmpfs on %s: %w", dir, err)
	}
	return nil
}
