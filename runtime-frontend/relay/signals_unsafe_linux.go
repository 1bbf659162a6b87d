// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runtimeSignals are those that os/signal does not deliver, or does not tell
// apart from what the Go runtime and the kernel make of them: SIGPIPE of our own
// writes, SIGCHLD of orphans, SIGURG by which the runtime interrupts its threads, SIGPROF,
// which it keeps, and 32 to 34, which it leaves to a C library's threads.
var runtimeSignals = [...]unix.Signal{unix.SIGPIPE, unix.SIGCHLD, unix.SIGURG, unix.SIGPROF, 32, 33, 34}

// childEnded is what the handler writes for a SIGCHLD that nobody sent.
const childEnded = 0

// Read by the handler, which may run at any moment and on any thread: written
// before it is installed, and never again.
var (
	handlerPipe int32 = -1
	handlerPid  int32 // our own pid, as the senders' are told to us
)

// kernelSigaction is struct sigaction of rt_sigaction(2), not of the C library.
type kernelSigaction struct {
	handler, flags, restorer, mask uintptr
}

// Flags of rt_sigaction(2), include/uapi/asm-generic/signal-defs.h and, for the
// last, arch/x86/include/uapi/asm/signal.h.
const (
	saSiginfo  = 0x00000004
	saOnstack  = 0x08000000
	saRestart  = 0x10000000
	saRestorer = 0x04000000
)

// takeRuntimeSignals installs a handler for the runtime's signals that is no Go
// code: a few instructions that write the number of a signal to a pipe when another process
// has sent it (signals_amd64.s), and nothing for the runtime's and the kernel's own. It
// returns the pipe's other end, or -1 where there is no such handler; then the
// signals are ignored, so that they do the relay no harm.
//
// The runtime loses what it uses SIGURG for: a goroutine is interrupted where it
// calls a function, and not between. None of the relay's runs long without.
func takeRuntimeSignals() (int, error) {
	action := kernelSigaction{handler: 1} // SIG_IGN
	fds := []int{-1, -1}
	if handlerPipe >= 0 || handlerPid != 0 {
		return -1, wrap("taking a signal over", unix.EALREADY)
	}
	if handler, restorer := rawHandler(); handler != 0 {
		if err := unix.Pipe2(fds, unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return -1, wrap("making a pipe for signals", err)
		}
		handlerPipe, handlerPid = int32(fds[1]), int32(os.Getpid())
		// On the thread's signal stack, which the runtime has set up, with all others held back.
		action = kernelSigaction{handler, saSiginfo | saOnstack | saRestart | saRestorer, restorer, ^uintptr(0)}
	}
	for _, n := range runtimeSignals {
		if fds[0] < 0 && n < 32 && n != unix.SIGPROF {
			continue // os/signal's, as good as it goes
		}
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(&action)), 0, unsafe.Sizeof(action.mask), 0, 0)
		if errno != 0 {
			return -1, wrap("taking a signal over", errno)
		}
	}
	return fds[0], nil
}
