// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"bulkhead/deploy/daemon"
)

// Process is a daemon that says when it is ready, as daemons do to systemd
// (sd_notify(3)). Its log is a file that outlives it and is appended to by its
// successors.
type Process struct {
	Name string
	Log  string

	cmd   *exec.Cmd
	ended chan struct{} // closed once it was waited for
	err   error         // of the wait, once ended is closed
}

// stopTime is what a daemon is given to end by itself.
const stopTime = 30 * time.Second

// StartProcess starts argv and returns when it says that it is ready.
func StartProcess(ctx context.Context, dir, name string, env []string, argv ...string) (*Process, error) {
	p := &Process{Name: name, Log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	address := filepath.Join(dir, name+".notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for the readiness of %s: %w", name, err)
	}
	defer func() {
		notify.Close()
		os.Remove(address)
	}()
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(append(os.Environ(), env...), "NOTIFY_SOCKET="+address)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C at the tests is theirs to handle
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	ready := make(chan struct{})
	go daemon.AwaitReady(notify, ready) // ends with the socket
	select {
	case <-ready:
		return p, nil
	case <-p.ended:
		return nil, &EndedError{Name: name, Err: p.err, Output: p.Tail(20)}
	case <-ctx.Done():
		_ = p.Kill()
		return nil, fmt.Errorf("%s was not ready in time: %w\n%s", name, ctx.Err(), p.Tail(20))
	}
}

// EndedError says that a daemon ended instead of becoming ready.
type EndedError struct {
	Name   string
	Err    error  // of the wait; nil when it ended with 0
	Output string // the end of what it said
}

// Error implements error.
func (e *EndedError) Error() string {
	return fmt.Sprintf("%s ended instead of becoming ready: %v\n%s", e.Name, e.Err, e.Output)
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Kill ends it as the kernel's OOM killer would, and waits.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.ended
	return nil
}

// Stop asks it to end and waits; one that does not is killed, and that is an
// error, as is an end with anything but 0.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.ended:
	case <-time.After(stopTime):
		return errors.Join(fmt.Errorf("%s did not end within %s of SIGTERM\n%s", p.Name, stopTime, p.Tail(20)), p.Kill())
	}
	if p.err != nil {
		return fmt.Errorf("%s ended with %w\n%s", p.Name, p.err, p.Tail(20))
	}
	return nil
}

// Tail is the last lines of the log.
func (p *Process) Tail(lines int) string { return Tail(p.Log, 0, lines) }

// Tail is the last lines of what a file holds beyond offset; what engines tell of
// their ordinary doings is left out.
func Tail(path string, offset int64, lines int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if offset > int64(len(text)) {
		offset = 0
	}
	all := strings.Split(strings.TrimSpace(string(text[offset:])), "\n")
	all = slices.DeleteFunc(all, func(line string) bool { return strings.Contains(line, " level=info ") })
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
