// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
)

// loop is what only the main loop knows.
type loop struct {
	*relay
	committed bool
	attached  bool // a worker has been here
	pidfd     int  // of QEMU; -1 before the first worker
	deadline  time.Time
	vmDead    bool
	buf       [stdio.MaxFrame + 1]byte
}

// run starts the movers and waits for everything that has a descriptor. It
// returns the exit code.
func (r *relay) run() int {
	l := &loop{relay: r, pidfd: -1}
	if err := r.catchSignals(); err != nil {
		_ = transmit(r.control, []byte(err.Error()))
		return codeNoStart
	}
	go r.sendLoop()
	go r.readInput()
	go r.writeOutput(0)
	if !r.setup.Terminal {
		go r.writeOutput(1)
	}
	if err := transmit(r.control, []byte(Ready)); err != nil {
		return codeNoStart
	}
	for {
		if code, done := l.step(); done {
			return code
		}
		l.wait()
	}
}

// wait sleeps until a descriptor is ready or the deadline is reached, and serves what is ready.
func (l *loop) wait() {
	l.mu.Lock()
	conn, warm := l.conn, l.warm
	l.mu.Unlock()
	fds := [6]unix.PollFd{
		{Fd: int32(l.wakeMain), Events: unix.POLLIN},
		{Fd: int32(l.listener), Events: unix.POLLIN},
		{Fd: int32(l.control), Events: unix.POLLIN},
		{Fd: int32(l.pidfd), Events: unix.POLLIN},
		{Fd: int32(conn), Events: unix.POLLIN},
		{Fd: int32(l.runtimeSignals), Events: unix.POLLIN},
	}
	if l.vmDead {
		fds[3].Fd = -1
	}
	timeout := -1
	if !l.deadline.IsZero() {
		timeout = max(0, int(time.Until(l.deadline)/time.Millisecond)+1)
	}
	cool := warm && (timeout < 0 || timeout > int(coolDown/time.Millisecond))
	if cool {
		timeout = int(coolDown / time.Millisecond)
	}
	if !poll(fds[:], timeout) {
		if cool {
			l.giveBack()
		}
		return
	}
	if fds[0].Revents != 0 {
		var b [8]byte
		_, _ = unix.Read(l.wakeMain, b[:])
	}
	if fds[5].Revents != 0 {
		l.readRuntimeSignals()
	}
	if fds[4].Revents != 0 {
		l.fromWorker(conn)
	}
	if fds[1].Revents != 0 {
		if fd := accept(l.listener); fd >= 0 {
			l.connect(fd)
		}
	}
	if fds[2].Revents != 0 {
		l.fromFrontend()
	}
	if fds[3].Revents != 0 {
		l.vmDead = true
		l.deadline = time.Now().Add(goneGrace)
	}
}

// giveBack returns the memory of grown buffers to the host.
func (l *loop) giveBack() {
	l.mu.Lock()
	l.warm = false
	l.in.Release()
	l.out[0].Release()
	l.out[1].Release()
	l.mu.Unlock()
	debug.FreeOSMemory()
}

// step looks whether the end has come.
func (l *loop) step() (code int, done bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.control < 0 && !l.committed {
		return codeNoStart, true
	}
	past := !l.deadline.IsZero() && !time.Now().Before(l.deadline)
	if l.exit != nil && (l.drained() || l.finishNow) {
		l.acknowledgeExit()
		return l.exitCode, true
	}
	if !l.draining && (l.gone || (l.vmDead && (past || l.conn < 0))) {
		l.draining, past = true, false
		l.deadline = time.Now().Add(drainDeadline)
	}
	if l.draining && (past || l.flushed()) {
		switch {
		case l.exit != nil:
			return l.exitCode, true
		case l.gone:
			return l.goneCode, true
		default:
			return codeVMDead, true
		}
	}
	if !l.attached && l.control < 0 && past {
		return codeNoStart, true
	}
	return 0, false
}

// drained says whether all output up to the ends EXIT named is written.
func (r *relay) drained() bool {
	for i := range r.out {
		if !r.out[i].Closed() && r.out[i].Written() < r.exitEnds[i] {
			return false
		}
	}
	return true
}

// flushed says whether all output that was received is written.
func (r *relay) flushed() bool { return r.out[0].Pending() == 0 && r.out[1].Pending() == 0 }

// acknowledgeExit lets the sender say EXIT_ACK, for a moment at most. Callers hold r.mu.
func (r *relay) acknowledgeExit() {
	if r.conn < 0 {
		return
	}
	conn := r.conn
	cut := time.AfterFunc(ackDeadline, func() { _ = unix.Shutdown(conn, unix.SHUT_RDWR) })
	defer cut.Stop()
	for r.sending {
		r.unsent.Wait()
	}
	r.exitAckSent = true
	for i := range r.out {
		_ = transmit(conn, r.out[i].AppendAck(nil, uint8(stdio.Stdout+i), 0))
	}
	_ = transmit(conn, stdio.AppendSimple(nil, stdio.TypeExitAck, 0, 0, 0))
}

// connect makes fd the worker's connection; the one before it is dropped.
func (l *loop) connect(fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disconnect()
	l.conn = fd
	l.helloPending = true
	l.restate()
	l.in.Stall()
	l.sendable.Broadcast()
}

// disconnect closes the connection once the sender has left it. Callers hold r.mu.
func (r *relay) disconnect() {
	r.lost = false
	if r.conn < 0 {
		return
	}
	_ = unix.Shutdown(r.conn, unix.SHUT_RDWR)
	for r.sending {
		r.unsent.Wait()
	}
	unix.Close(r.conn)
	r.conn, r.lost = -1, false
}

// fromFrontend takes a word on the control socket, or its end.
func (l *loop) fromFrontend() {
	var b [64]byte
	n, passed, err := receive(l.control, b[:])
	if passed >= 0 {
		unix.Close(passed)
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return
	}
	if err == nil && string(b[:n]) == Commit {
		l.committed = true
		return
	}
	unix.Close(l.control)
	l.control = -1
	if !l.attached && l.deadline.IsZero() {
		l.deadline = time.Now().Add(attachDeadline)
	}
}

// fromWorker takes the packets that are there, a bounded number at a time.
func (l *loop) fromWorker(conn int) {
	for range 16 {
		n, passed, err := receive(conn, l.buf[:])
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return
		}
		if errors.Is(err, unix.ECONNRESET) {
			continue // said once, when the worker left something unread; its own words still come
		}
		l.mu.Lock()
		if err != nil || n == 0 {
			l.disconnect()
			l.mu.Unlock()
			return
		}
		f, err := stdio.Parse(l.buf[:n])
		switch {
		case err != nil:
			// A worker that speaks another language is no worker.
			l.disconnect()
		case f.Type == stdio.TypeAttach:
			l.attach(passed)
			passed = -1
		default:
			l.handle(f)
		}
		closed := l.conn != conn
		l.mu.Unlock()
		if passed >= 0 {
			unix.Close(passed)
		}
		if closed {
			return
		}
	}
}

// attach takes the worker's first word. Callers hold r.mu.
func (l *loop) attach(pidfd int) {
	if !l.attached {
		l.attached = true
		l.deadline = time.Time{}
		if l.setup.NewCgroupNS {
			_ = leaveCgroupNS() // best effort: the view of a tool, not a boundary
		}
	}
	if pidfd >= 0 {
		if l.pidfd >= 0 {
			unix.Close(l.pidfd)
		}
		l.pidfd = pidfd
	}
}
