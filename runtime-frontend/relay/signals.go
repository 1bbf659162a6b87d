// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSignals bounds the unacknowledged signals. Like the kernel, the queue
// holds each standard signal at most once while it has not been sent.
const maxSignals = 256

// signalQueue numbers signals and keeps them until they are acknowledged.
type signalQueue struct {
	first uint64 // sequence number of queue[0] less one
	sent  int    // how many of the queue have been sent
	queue []uint8
}

func (q *signalQueue) add(n int) {
	if len(q.queue) >= maxSignals {
		return
	}
	if n < 32 {
		for _, waiting := range q.queue[q.sent:] {
			if int(waiting) == n {
				return
			}
		}
	}
	q.queue = append(q.queue, uint8(n))
}

func (q *signalQueue) next() (seq uint64, n int, ok bool) {
	if q.sent == len(q.queue) {
		return 0, 0, false
	}
	q.sent++
	return q.first + uint64(q.sent), int(q.queue[q.sent-1]), true
}

func (q *signalQueue) acknowledge(seq uint64) {
	if seq <= q.first || seq > q.first+uint64(q.sent) {
		return
	}
	k := int(seq - q.first)
	q.first = seq
	q.sent -= k
	q.queue = q.queue[:copy(q.queue, q.queue[k:])]
}

func (q *signalQueue) rewind() { q.sent = 0 }

// catchSignals forwards what is sent to this process: by os/signal, and from
// a pipe those that it does not give away (see takeRuntimeSignals).
func (r *relay) catchSignals() (err error) {
	got := make(chan os.Signal, maxSignals)
	signal.Notify(got)
	if r.runtimeSignals, err = takeRuntimeSignals(); err != nil {
		return err
	}
	go func() {
		for s := range got {
			n, ok := s.(syscall.Signal)
			switch {
			case !ok, n == unix.SIGPIPE, n == unix.SIGURG: // of our own writes, and of the runtime
			case n == unix.SIGCHLD:
				reap()
			default:
				r.caught(n)
			}
		}
	}()
	return nil
}

// readRuntimeSignals takes what the raw handler has written.
func (r *relay) readRuntimeSignals() {
	var b [64]byte
	n, _ := unix.Read(r.runtimeSignals, b[:]) // with more in the pipe, the main loop comes again
	for _, s := range b[:max(n, 0)] {
		if s == childEnded {
			reap()
		} else {
			r.caught(syscall.Signal(s))
		}
	}
}

func (r *relay) caught(n syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.setup.Terminal {
		switch n {
		case unix.SIGWINCH:
			r.winsizePending = !r.hungUp
			r.sendable.Signal()
			return
		case unix.SIGHUP, unix.SIGCONT:
			if terminalGone() { // the kernel sends both when the master closes
				r.hangup()
				r.sendable.Signal()
				return
			}
		}
	}
	switch n {
	case unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP:
		if r.exit != nil {
			// The process is dead and a reader is stuck: whoever asks for the
			// end gets it.
			r.finishNow = true
			r.wake(r.wakeMain)
			return
		}
	}
	r.signals.add(int(n))
	r.sendable.Signal()
}

// terminalGone says whether the master of the terminal at 0 is closed.
func terminalGone() bool {
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	return err == unix.EIO
}

// reap collects orphans that the kernel gave to this PID 1.
func reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err != unix.EINTR && (err != nil || pid <= 0) {
			return
		}
	}
}
