// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// locks are checks of what keeps two programs of a container apart.
var locks = []check{
	{"flock", func(dir string) error { return exclude(dir, "flock") }},
	{"record-lock", func(dir string) error { return exclude(dir, "record") }},
	{"open-file-lock", func(dir string) error { return exclude(dir, "ofd") }},
	{"flock-beside-record-lock", besides},
	{"flock-by-another-name", flockByAnotherName},
	{"lease", lease},
	{"exclusive-creation", exclusiveCreation},
}

// contender is the word by which the probe is called as the second process.
const contender = "contend"

// contend tries to take a lock that another process holds, and tells by its exit code: 0 when it was kept out.
func contend(kind, path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = lock(f, kind)
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EACCES):
		os.Exit(0)
	case err != nil:
		fmt.Println(err)
		os.Exit(3)
	}
	os.Exit(4)
}

func lock(f *os.File, kind string) error {
	region := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10}
	switch kind {
	case "flock":
		return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	case "record":
		return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &region)
	default:
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &region)
	}
}

func exclude(dir, kind string) error {
	f, err := create(dir, "lock", "")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := lock(f, kind); err != nil {
		return err
	}
	if out, err := exec.Command("/proc/self/exe", contender, kind, f.Name()).CombinedOutput(); err != nil {
		return fmt.Errorf("another process was not kept out: %w %s", err, out)
	}
	return nil
}

// besides: mail programs take both kinds of lock on a mailbox.
func besides(dir string) error {
	f, err := create(dir, "lock", "")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := lock(f, "flock"); err != nil {
		return err
	}
	return lock(f, "record")
}

func flockByAnotherName(dir string) error {
	f, err := create(dir, "lock", "")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Link(f.Name(), f.Name()+"2"); err != nil {
		return err
	}
	if err := lock(f, "flock"); err != nil {
		return err
	}
	if out, err := exec.Command("/proc/self/exe", contender, "flock", f.Name()+"2").CombinedOutput(); err != nil {
		return fmt.Errorf("the other name is another lock: %w %s", err, out)
	}
	return nil
}

func lease(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	return err
}

func exclusiveCreation(dir string) error {
	path := filepath.Join(dir, "f")
	for want, n := []error{nil, os.ErrExist}, 0; n < 2; n++ {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if !errors.Is(err, want[n]) {
			return err
		}
		f.Close()
	}
	return nil
}
