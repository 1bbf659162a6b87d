// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inside runs fn in a network namespace, nil for the agent's own, on a thread that is there: so that
// sockets and /proc/sys/net are its.
func inside(home *os.File, fn func() error) error {
	if home == nil {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine and nobody else meets it where it is.
		runtime.LockOSThread()
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering the container's network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}
