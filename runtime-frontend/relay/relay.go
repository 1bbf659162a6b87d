// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package relay is the host process that stands for a container process: its
// pid is the container's pid, its end is the container's end. It holds the standard
// streams or the pty, forwards signals, and speaks bus/stdio with the agent
// through whichever worker is connected.
//
// One runs per container process, so it links no bus, no protobuf and no
// logger, does its I/O with plain system calls, and keeps its buffers small. It never changes the mode
// of descriptors 0, 1 and 2: their open file descriptions are shared with the engine.
//
// It imports bus/stdio, x/sys and the standard library. The invariant: it ends
// with the process's own code after everything the process wrote has been
// written onward, or with 137 soon after the VM is dead, and never without
// removing its socket, unless it is killed.
package relay

import (
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
)

const (
	codeVMDead  = 137 // as if killed: 128 + SIGKILL
	codeNoStart = 255 // the frontend or the worker never came through

	attachDeadline = 60 * time.Second       // committed, the frontend gone, and no worker ever
	goneGrace      = 300 * time.Millisecond // QEMU is dead: time for the worker to say why
	drainDeadline  = 900 * time.Millisecond // VM dead: time for the engine to take what was received
	coolDown       = time.Second            // quiet time after which memory is given back
	ackDeadline    = 200 * time.Millisecond // time for EXIT_ACK to leave
)

// relay is the state of the process.
type relay struct {
	setup    Setup
	listener int
	control  int // -1 once the frontend is gone
	null     int // /dev/null, put in the place of finished streams
	wakeMain int // eventfd: the main loop must look at the state
	wakeIn   int // eventfd: the stdin reader must look at the state

	runtimeSignals int // pipe of the raw signal handler; -1: none

	mu       sync.Mutex // guards all below
	sendable sync.Cond  // something to send, or a connection
	unsent   sync.Cond  // the sender has left the connection
	inRoom   sync.Cond
	outData  [2]sync.Cond

	in  stdio.Sender
	out [2]stdio.Receiver

	conn    int // -1 without a worker
	sending bool
	lost    bool // the sender found the connection broken

	helloPending               bool
	ackPending, resumePending  [2]bool
	winsizePending, hungUp     bool
	hangupPending, exitAckSent bool
	signals                    signalQueue

	exit      *stdio.Frame // EXIT, once received
	exitEnds  [2]uint64
	exitCode  int
	gone      bool
	goneCode  int
	finishNow bool // do not wait for stuck readers any more
	draining  bool // the VM is dead, what was received is being written
	warm      bool // buffers have grown since memory was last given back
}

// Main is the whole life of a relay process. It must be called on the leading
// thread, locked. It does not return.
func Main() {
	// The default first collection comes at 4 MiB; a relay lives with a tenth.
	debug.SetGCPercent(10)
	r, err := begin()
	if err != nil {
		_ = transmit(ControlFD, []byte(err.Error()))
		os.Exit(codeNoStart)
	}
	code := r.run()
	r.end(code)
}

// begin sets the process up as the frontend says.
func begin() (*relay, error) {
	unix.CloseOnExec(ControlFD)
	unix.CloseOnExec(RelayDirFD)
	buf := make([]byte, maxSetup)
	n, err := unix.Read(ControlFD, buf)
	if err != nil || n == 0 {
		return nil, errNoFrontend
	}
	setup, err := decodeSetup(string(buf[:n]))
	if err != nil {
		return nil, wrap("reading the setup", err)
	}
	// Warm from the set-up's own garbage.
	r := &relay{setup: setup, control: ControlFD, conn: -1, in: stdio.NewSender(), warm: true}
	for i := range r.out {
		r.out[i] = stdio.NewReceiver()
		r.outData[i].L = &r.mu
	}
	r.sendable.L, r.unsent.L, r.inRoom.L = &r.mu, &r.mu, &r.mu
	r.in.Stall()
	if setup.Terminal {
		r.out[1].Close() // a terminal has one output
	}
	if r.null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return nil, wrap("opening /dev/null", err)
	}
	for _, fd := range []*int{&r.wakeMain, &r.wakeIn} {
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return nil, wrap("making an eventfd", err)
		}
	}
	nameProcess()
	if r.listener, err = listen(setup.Socket); err != nil {
		return nil, wrap("listening on "+setup.Socket, err)
	}
	if err := enter(setup); err != nil {
		r.unlink()
		return nil, err
	}
	return r, nil
}

func (r *relay) unlink() { _ = unix.Unlinkat(RelayDirFD, r.setup.Socket, 0) }

// end removes the socket and ends the process.
func (r *relay) end(code int) {
	r.unlink()
	os.Exit(code)
}

// wake makes the main loop look at the state.
func (r *relay) wake(fd int) {
	one := [8]byte{1}
	_, _ = unix.Write(fd, one[:])
}
