// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// calls are system calls whose outcome tells what a process may do. Each is
// harmless when it works.
var calls = map[string]func() error{
	"getcwd":      func() error { _, err := unix.Getcwd(make([]byte, 4096)); return err },
	"mkdir":       func() error { return undoDir(unix.Mkdir("/tmp/probe-mkdir", 0o700), "/tmp/probe-mkdir") },
	"chown":       func() error { return unix.Lchown("/tmp", 0, 0) },
	"sethostname": func() error { return unix.Sethostname([]byte("probe")) },
	"mount":       func() error { return undoMount(unix.Mount("probe", "/mnt", "tmpfs", 0, ""), "/mnt") },
	"unshare":     func() error { return onThread(func() error { return unix.Unshare(unix.CLONE_NEWUTS) }) },
	"umask-077":   func() error { return raw(unix.SYS_UMASK, 0o077) },
	"umask-022":   func() error { return raw(unix.SYS_UMASK, 0o022) },
	"mknod": func() error {
		return undoFile(unix.Mknod("/tmp/probe-mknod", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))), "/tmp/probe-mknod")
	},
}

func call(name string) string {
	f, ok := calls[name]
	if !ok {
		return "the probe knows no call " + name
	}
	return word(f())
}

func undoDir(err error, path string) error {
	if err == nil {
		err = unix.Rmdir(path)
	}
	return err
}

func undoFile(err error, path string) error {
	if err == nil {
		err = unix.Unlink(path)
	}
	return err
}

func undoMount(err error, path string) error {
	if err == nil {
		err = unix.Unmount(path, 0)
	}
	return err
}

// onThread gives f a thread that ends with it.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		result <- f()
	}()
	return <-result
}

func raw(number, argument uintptr) error {
	if _, _, errno := unix.RawSyscall(number, argument, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// ioPriority is ioprio_get(2) of this process.
func ioPriority() int {
	const whoProcess = 1
	value, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_GET, whoProcess, uintptr(unix.Getpid()), 0)
	if errno != 0 {
		return -int(errno)
	}
	return int(value)
}
