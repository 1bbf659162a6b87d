// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
)

// smallRead is the buffer of a stdin that is at rest.
const smallRead = 1 << 10

// readInput moves descriptor 0 into the sender's ring while there is room.
func (r *relay) readInput() {
	buf := make([]byte, smallRead)
	fds := [2]unix.PollFd{{Fd: 0, Events: unix.POLLIN}, {Fd: int32(r.wakeIn), Events: unix.POLLIN}}
	for {
		r.mu.Lock()
		for r.in.Space() == 0 && !r.in.Closed() {
			r.inRoom.Wait()
		}
		room, closed := min(r.in.Space(), len(buf)), r.in.Closed()
		r.mu.Unlock()
		if closed {
			// Nobody reads: let the writer on the other side see it.
			if !r.setup.Terminal {
				_ = unix.Dup3(r.null, 0, unix.O_CLOEXEC)
			}
			return
		}
		// Wait with poll first, so that nothing is taken out of a shared stdin
		// after the process has closed its own.
		if !poll(fds[:], -1) || fds[0].Revents == 0 {
			if fds[1].Revents != 0 {
				var b [8]byte
				_, _ = unix.Read(r.wakeIn, b[:])
			}
			continue
		}
		n, err := unix.Read(0, buf[:room])
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		r.mu.Lock()
		if n > 0 {
			r.in.Write(buf[:n])
			r.moved(n)
		} else if r.setup.Terminal {
			r.hangup()
		} else {
			r.in.End()
		}
		r.sendable.Signal()
		r.mu.Unlock()
		if n <= 0 {
			return
		}
		switch { // as large as what comes: most relays see keystrokes or nothing
		case n == len(buf) && n < stdio.MaxData:
			buf = make([]byte, stdio.MaxData)
		case n < smallRead && len(buf) > smallRead:
			buf = make([]byte, smallRead)
		}
	}
}

// moved notes that buffers may have grown. Callers hold r.mu.
func (r *relay) moved(n int) {
	if n >= 4<<10 && !r.warm {
		r.warm = true
		r.wake(r.wakeMain)
	}
}

// hangup notes that the terminal is gone. Callers hold r.mu.
func (r *relay) hangup() {
	if !r.hungUp {
		r.hungUp, r.hangupPending = true, true
		r.winsizePending = false
	}
}

// writeOutput moves received output to descriptor i+1. It blocks where the
// reader does, and only its own stream waits.
func (r *relay) writeOutput(i int) {
	fd := stdio.Stdout + i
	o := &r.out[i]
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		for o.Pending() == 0 && !o.Ended() {
			r.outData[i].Wait()
		}
		next := o.Peek(stdio.MaxData)
		if len(next) == 0 {
			r.finishOutput(i, fd)
			return
		}
		r.mu.Unlock()
		n, err := writeSome(fd, next)
		r.mu.Lock()
		if err != nil {
			o.Close()
			r.ackPending[i] = true
			r.sendable.Signal()
			r.wake(r.wakeMain)
			if !r.setup.Terminal {
				_ = unix.Dup3(r.null, fd, unix.O_CLOEXEC)
			}
			return
		}
		r.moved(n)
		if o.Done(n) {
			r.ackPending[i] = true
			r.sendable.Signal()
		}
		if o.Pending() == 0 && (r.exit != nil || r.draining) {
			r.wake(r.wakeMain)
		}
	}
}

// finishOutput passes the end of a stream on. Callers hold r.mu.
func (r *relay) finishOutput(i, fd int) {
	r.out[i].PassedEOF()
	r.ackPending[i] = true
	r.sendable.Signal()
	r.wake(r.wakeMain)
	if !r.setup.Terminal {
		_ = unix.Dup3(r.null, fd, unix.O_CLOEXEC)
	}
}

// writeSome writes at least a byte of b. A descriptor that somebody else has
// made non-blocking is waited for.
func writeSome(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Write(fd, b)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
		default:
			return 0, err
		}
	}
}
