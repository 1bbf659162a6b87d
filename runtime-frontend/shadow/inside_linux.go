// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package shadow

import (
	"fmt"

	"golang.org/x/sys/unix"

	"bulkhead/runtime-frontend/relay"
)

// Inside runs f on a thread that stands in the namespaces of a process, so that the
// programs it starts do, too. The thread ends with f.
func Inside(pid int, f func() error) error {
	ns := &namespaces{}
	if err := ns.join(Spec{JoinPID: pid}, &relay.Setup{}); err != nil {
		return err
	}
	defer ns.close()
	done := make(chan error, 1)
	go onOwnThread(func() {
		if err := ns.enterHere(); err != nil {
			done <- err
			return
		}
		done <- f()
	})
	return <-done
}

func (ns *namespaces) enterHere() error {
	for _, f := range ns.enter {
		if err := unix.Setns(int(f.Fd()), 0); err != nil {
			return fmt.Errorf("entering the namespace %s: %w", f.Name(), err)
		}
	}
	if ns.mount == nil {
		return nil
	}
	// setns(2) demands a file system context shared with nobody.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leaving the shared file system context: %w", err)
	}
	if err := unix.Setns(int(ns.mount.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("entering the namespace %s: %w", ns.mount.Name(), err)
	}
	return nil
}
