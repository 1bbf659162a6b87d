// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// drainMax bounds what is still taken from a pipe after its process has died:
	// the most a pipe of an unprivileged process can hold.
	drainMax = 1 << 20
	// drainRing holds that beside a full window: the exit is told although nobody
	// on the host reads, and what is left of the output goes out when somebody does.
	drainRing = 2 << 20
)

// read moves an output stream into its ring. It waits for room, so a full ring
// blocks the writing process.
func (p *Process) read(i int, f *os.File) {
	defer p.moving.Done()
	defer f.Close()
	buf := make([]byte, ringMin) // most processes say little
	rest := drainMax
	for {
		room, exited := p.awaitRoom(i, len(buf))
		if room == 0 {
			break
		}
		var n int
		var err error
		if exited {
			n, err = readNow(f, buf[:min(room, rest)])
		} else {
			n, err = f.Read(buf[:room])
		}
		if n > 0 {
			p.e.mu.Lock()
			p.out[i].Write(buf[:n])
			p.e.markReady(p)
			p.e.mu.Unlock()
		}
		if n == ringMin && len(buf) == ringMin {
			buf = make([]byte, MaxData)
		}
		if exited {
			rest -= n
			if n <= 0 || rest == 0 {
				break
			}
		} else if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			break // EOF, or EIO of a terminal without processes
		}
	}
	p.e.mu.Lock()
	p.out[i].End()
	p.drained[i] = true
	p.checkExit()
	p.e.markReady(p)
	p.e.mu.Unlock()
	f.SetReadDeadline(time.Time{})
	for { // whoever still writes is read into nothing
		if _, err := f.Read(buf); err != nil {
			return
		}
	}
}

// awaitRoom waits until something may be read: n is the most. n is 0 when
// nobody wants the stream any more.
func (p *Process) awaitRoom(i, most int) (n int, exited bool) {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	for p.out[i].Space() == 0 && !p.out[i].Closed() && !p.forgotten {
		p.room.Wait()
	}
	if p.out[i].Closed() || p.forgotten {
		return 0, p.exited
	}
	return min(p.out[i].Space(), most), p.exited
}

// readNow reads what is there without waiting.
func readNow(f *os.File, b []byte) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	err = raw.Control(func(fd uintptr) {
		for {
			if n, readErr = unix.Read(int(fd), b); readErr != unix.EINTR {
				return
			}
		}
	})
	return max(n, 0), errors.Join(err, readErr)
}

// write moves stdin from its window to the process.
func (p *Process) write(f *os.File) {
	defer p.moving.Done()
	buf := make([]byte, ringMin)
	for {
		n, end := p.awaitInput(&buf)
		if n == 0 {
			p.finishInput(f, end)
			return
		}
		if _, err := f.Write(buf[:n]); err != nil {
			p.finishInput(f, false)
			return
		}
		p.e.mu.Lock()
		if p.in.Done(n) {
			p.ackPending = true
			p.e.markReady(p)
		}
		p.e.mu.Unlock()
	}
}

// awaitInput waits for stdin. n is 0 at its end, or when the process is gone.
func (p *Process) awaitInput(buf *[]byte) (n int, end bool) {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	for p.in.Pending() == 0 {
		if p.in.Ended() {
			return 0, true
		}
		if p.in.Closed() || p.forgotten {
			return 0, false
		}
		p.fed.Wait()
	}
	if p.in.Pending() > len(*buf) && len(*buf) < MaxData {
		*buf = make([]byte, MaxData)
	}
	return p.in.Next(*buf), false
}

// finishInput closes stdin and says so. A terminal has no end of input of its
// own: its master stays open for the output.
func (p *Process) finishInput(f *os.File, end bool) {
	if !p.term {
		f.Close()
	}
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	if end {
		p.in.PassedEOF()
	} else {
		p.in.Close()
	}
	p.ackPending = true
	p.e.markReady(p)
}
