// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one container process's streams at an Endpoint.
type Process struct {
	e       *Endpoint
	channel uint32
	streams Streams
	term    bool
	done    chan struct{}  // closed by Endpoint.forget
	moving  sync.WaitGroup // the goroutines that move bytes

	// The rest is guarded by e.mu.
	out     [2]Sender // stdout, stderr
	drained [2]bool   // what the process itself wrote is in out
	in      Receiver
	room    sync.Cond // bytes acknowledged, or the process ended
	fed     sync.Cond // bytes for stdin

	exited, exitReady, exitAcked bool
	code                         int
	exitFlags                    uint16 // FlagOOM or 0
	signals                      uint64 // last sequence number delivered
	hungUp                       bool
	queued, forgotten            bool
	turn                         int // which output stream sends first

	syncPending, ackPending, resumePending, exitPending, sigAckPending bool
}

func newProcess(e *Endpoint, channel uint32, s Streams) (*Process, error) {
	p := &Process{e: e, channel: channel, done: make(chan struct{}), in: NewReceiver()}
	p.out = [2]Sender{NewSender(), NewSender()}
	p.room.L, p.fed.L = &e.mu, &e.mu
	if s.Terminal != nil {
		if s.Stdin != nil || s.Stdout != nil || s.Stderr != nil {
			return nil, ErrStreams
		}
		p.term = true
	}
	for _, f := range []**os.File{&s.Stdin, &s.Stdout, &s.Stderr, &s.Terminal} {
		if err := makePollable(f); err != nil {
			for _, g := range []*os.File{s.Stdin, s.Stdout, s.Stderr, s.Terminal} {
				if g != nil {
					g.Close()
				}
			}
			return nil, err
		}
	}
	p.streams = s
	return p, nil
}

// makePollable replaces *f by a file the runtime can wait on, so that Close
// and deadlines interrupt reads and writes.
func makePollable(f **os.File) error {
	if *f == nil || ((*f).SetDeadline(time.Time{}) == nil && nonblocking(*f)) {
		return nil
	}
	fd, err := unix.FcntlInt((*f).Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	dup := os.NewFile(uintptr(fd), (*f).Name())
	(*f).Close()
	*f = dup
	return dup.SetDeadline(time.Time{})
}

// nonblocking looks at the descriptor itself: os.File.Fd makes it blocking and
// leaves the file looking as if it could be waited on.
func nonblocking(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var flags int
	var flagsErr error
	err = raw.Control(func(fd uintptr) { flags, flagsErr = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	return err == nil && flagsErr == nil && flags&unix.O_NONBLOCK != 0
}

func (p *Process) closeFiles() {
	for _, f := range []*os.File{p.streams.Stdin, p.streams.Stdout, p.streams.Stderr, p.streams.Terminal} {
		if f != nil {
			f.Close()
		}
	}
}

func (p *Process) output(i int) *os.File {
	switch {
	case i == 0 && p.term:
		return p.streams.Terminal
	case i == 0:
		return p.streams.Stdout
	default:
		return p.streams.Stderr
	}
}

func (p *Process) input() *os.File {
	if p.term {
		return p.streams.Terminal
	}
	return p.streams.Stdin
}

// start begins moving bytes. Callers hold e.mu.
func (p *Process) start() {
	for i := range p.out {
		f := p.output(i)
		if f == nil {
			p.out[i].End()
			p.drained[i] = true
			continue
		}
		p.moving.Add(1)
		go p.read(i, f)
	}
	in := p.input()
	if in == nil {
		p.in.Close()
		return
	}
	p.moving.Add(1)
	go p.write(in)
}

// Exited says that the process has died with code (0..255, 128+n for signal
// n). What its pipes hold at this moment still goes out, then EXIT. A child
// that keeps a pipe open is read on into nothing, so it neither blocks nor
// dies of SIGPIPE. oom says that the kernel killed it for want of memory.
func (p *Process) Exited(code int, oom bool) {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	if p.exited {
		return
	}
	p.exited, p.code = true, code&0xff
	if oom {
		p.exitFlags = FlagOOM
	}
	p.in.Close()
	p.ackPending = true
	p.fed.Broadcast()
	p.room.Broadcast()
	for i := range p.out {
		p.out[i].widen(drainRing)
		if f := p.output(i); f != nil {
			f.SetReadDeadline(time.Unix(1, 0)) // interrupt the read; its goroutine takes the rest
		}
	}
	if f := p.input(); f != nil {
		f.SetWriteDeadline(time.Unix(1, 0))
	}
	p.checkExit()
	p.e.markReady(p)
}

// Done is closed when the relay has acknowledged the exit, or Close was called.
func (p *Process) Done() <-chan struct{} { return p.done }

// Close forgets the process and closes its files. Needed when the relay will
// never acknowledge; harmless otherwise.
func (p *Process) Close() {
	p.e.mu.Lock()
	p.e.forget(p)
	p.exited = true
	p.in.Close()
	for i := range p.out {
		p.out[i].close()
	}
	p.fed.Broadcast()
	p.room.Broadcast()
	p.e.mu.Unlock()
	p.closeFiles()
	p.moving.Wait()
}

// checkExit makes EXIT due once all output is in the rings. Callers hold e.mu.
func (p *Process) checkExit() {
	if p.exited && !p.exitReady && p.drained[0] && p.drained[1] {
		p.exitReady, p.exitPending = true, true
	}
}

// resize sets the terminal's size.
func resize(f *os.File, rows, cols uint16) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	return errors.Join(err, ioctlErr)
}
