// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ignoreRuntimeSignals keeps the signals that os/signal cannot deliver from
// ending the relay: SIGPROF, which the Go runtime keeps, and 32 to 34, which it
// leaves to a C library's threads.
func ignoreRuntimeSignals() {
	action := [4]uint64{1} // struct kernel_sigaction with the handler SIG_IGN
	for _, n := range [...]uintptr{uintptr(unix.SIGPROF), 32, 33, 34} {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&action)), 0, unsafe.Sizeof(action[3]), 0, 0)
	}
}
