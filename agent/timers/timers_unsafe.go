// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package timers makes the timers of the Go runtime coarse: those of the agent, and those of the processes that become
// containers until they do.
//
// The runtime's monitor thread (sysmon) sleeps for 20 microseconds at a time while anything runs. Each of these sleeps
// programs the timer, takes an interrupt and changes the process twice, which under emulation was a third of what it took to
// make a container (docs/performance.md). With a slack of a millisecond (prctl(2), PR_SET_TIMERSLACK) the kernel lets the
// thread sleep that long, or until something else wakes the processor.
//
// Threads inherit the slack, and processes also as the value that they may reset themselves to. The one invariant: a
// container's program has the kernel's own value as both. So the processes of nsexec, which are the parents of containers'
// inits, have it, the runtime of an init does not, and the thread that becomes the program goes back to it
// (agent/reexec).
//
// All of it is C that runs before the Go runtime; nothing is to be imported from here. Constructors run in the order in
// which the linker met their packages, which is by their distance from main: this package must be imported from further away
// than libcontainer's nsenter, whose constructor is nsexec: main imports that one, and this one's only importer is agent/reexec. TestTimersOfAContainerAreTheKernelsOwn fails otherwise.
package timers

/*
#include <sys/prctl.h>

#define KERNELS_OWN (50UL * 1000)
#define COARSE (1000UL * 1000)

// A constructor with a priority comes before all that have none, as nsexec.
__attribute__((constructor(101))) static void before_nsexec(void) { prctl(PR_SET_TIMERSLACK, KERNELS_OWN, 0, 0, 0); }

__attribute__((constructor)) static void after_nsexec(void) { prctl(PR_SET_TIMERSLACK, COARSE, 0, 0, 0); }
*/
import "C"
