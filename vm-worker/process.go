// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// hostProcess is a process of the host that is not our child, held by a pidfd
// so that its end is an event and its pid cannot be taken for another's.
type hostProcess struct {
	pid   int
	pidfd *os.File
	dead  atomic.Bool // what was last seen, for when the handle is closed
}

// openProcess takes hold of pid, provided it is still the process that started
// at startTime (field 22 of /proc/<pid>/stat; 0 accepts any).
func openProcess(pid int, startTime uint64) (*hostProcess, error) {
	p := hypervisor.Process{PID: pid, StartTime: startTime}
	if startTime == 0 {
		found, err := hypervisor.FindProcess(pid)
		if err != nil {
			return nil, err
		}
		p = found
	}
	pidfd, err := p.Pidfd()
	if err != nil {
		return nil, err
	}
	return &hostProcess{pid: pid, pidfd: pidfd}, nil
}

// openRelay takes hold of the relay a record or a request names.
func openRelay(r *vmv1.Relay) (*hostProcess, error) {
	if r.GetPid() <= 1 {
		return nil, errors.New("no relay process is named")
	}
	return openProcess(int(r.Pid), r.StartTime)
}

// findRelay is openRelay for a recorded relay: one that has ended is no error.
func findRelay(r *vmv1.Relay) *hostProcess {
	p, err := openRelay(r)
	if err != nil {
		p = &hostProcess{pid: int(r.GetPid())} // without a handle: there is nothing to hold
		p.dead.Store(true)
	}
	return p
}

// wait returns when the process has ended (a zombie has), or when the handle is
// closed: then it is false, and nothing is known of the process. It waits in the
// runtime's poller: a thousand containers hold no threads.
func (p *hostProcess) wait() bool {
	if p.dead.Load() {
		return true
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	if raw.Read(pidfdEnded) != nil {
		return false
	}
	p.dead.Store(true)
	return true
}

// ended tells whether the process is dead, without waiting.
func (p *hostProcess) ended() bool {
	raw, err := p.pidfd.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) {
			if pidfdEnded(fd) {
				p.dead.Store(true)
			}
		})
	}
	return p.dead.Load()
}

// pidfdEnded tells whether the pidfd is readable, which it is from the moment
// its process is dead.
func pidfdEnded(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// signal sends a signal to exactly this process.
func (p *hostProcess) signal(sig unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// endProcess gives a process a grace to end by itself, then kills it.
func endProcess(ctx context.Context, p *hostProcess, grace time.Duration) error {
	if p == nil || p.ended() {
		return nil
	}
	done := make(chan struct{})
	go func() { // ends with the process, or when its handle is closed
		p.wait()
		close(done)
	}()
	if grace > 0 {
		select {
		case <-done:
			return nil
		case <-time.After(grace):
		case <-ctx.Done():
		}
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	select {
	case <-done:
		return nil
	case <-time.After(relayTime):
		return fmt.Errorf("process %d was killed and does not end", p.pid)
	}
}

// removeRelaySocket removes what a relay that was killed could not. Only a
// socket in the relays' own directory is touched: the path came in a request.
func (w *Worker) removeRelaySocket(r *vmv1.Relay) {
	if filepath.Dir(r.GetSocket()) != filepath.Join(w.runDir, "relay") {
		return
	}
	if err := os.Remove(r.GetSocket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("socket of a dead relay not removed", "error", err)
	}
}

func (p *hostProcess) close() { _ = p.pidfd.Close() }
