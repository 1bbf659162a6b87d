// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mount is one line of the guest's mount table. The root is a read-only image
// with empty mount points; what lies deeper is made in the file system above it.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	optional               bool // the kernel may lack it
}

const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

var mounts = []mount{
	{"proc", "/proc", "proc", safe, "", false},
	{"sysfs", "/sys", "sysfs", safe, "", false},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", false},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5", false},
	{"tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777", false},
	{"mqueue", "/dev/mqueue", "mqueue", safe, "", false},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", false},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", false},
	// favordynmods: moving a process must not wait for an RCU grace period (cgroup-v2.rst).
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", safe, "nsdelegate,favordynmods", false},
	{"securityfs", "/sys/kernel/security", "securityfs", safe, "", true},
}

// MountAll mounts the kernel's file systems. What is mounted already stays: the
// kernel mounts /dev itself.
func MountAll() error {
	for _, m := range mounts {
		if err := m.mount(); err != nil {
			return err
		}
	}
	return nil
}

func (m mount) mount() error {
	err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
	if errors.Is(err, unix.ENOENT) {
		if err = os.MkdirAll(m.target, 0o755); err == nil {
			err = unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		}
	}
	if err != nil && !errors.Is(err, unix.EBUSY) && !m.optional {
		return fmt.Errorf("mounting %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}
