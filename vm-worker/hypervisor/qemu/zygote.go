// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/jail"

	"golang.org/x/sys/unix"
)

// zygote is a QEMU that was started from a template, has translated what its guest
// runs when a container is made, and was stopped where the guest is nobody's again. Its children are
// VMs that continue there (preload/zygote/zygote.h). It ends when its control socket is closed, so also with this process.
type zygote struct {
	id      string
	process hypervisor.Process
	pidfd   *os.File
	stderr  *os.File
	ended   chan struct{} // closed when it has ended and was reaped

	mu      sync.Mutex
	control *net.UnixConn // guarded by mu: one order at a time

	failures atomic.Int32 // in a row
}

const (
	// orderTime bounds the answer to an order, of which some ms are work.
	orderTime = 15 * time.Second
	// busyRetry is the pause after a zygote was not ready to fork: a connection it is about to close.
	busyRetry = 5 * time.Millisecond
	// mostFailures is how many times in a row a zygote may fail to fork until it is given up.
	mostFailures = 3
)

// forkError is the failure of a zygote; any other error of fork would also meet a VM that is started.
type forkError struct{ err error }

func (e forkError) Error() string { return "forking a vm: " + e.err.Error() }
func (e forkError) Unwrap() error { return e.err }

// makeZygote starts a VM from the template, has its guest made ready once more, and stops it.
func (d *Driver) makeZygote(ctx context.Context, s hypervisor.Spec, t *template, ready func(context.Context, hypervisor.VM) error) (_ *zygote, err error) {
	from, err := t.open()
	if err != nil {
		return nil, err
	}
	defer from.close()
	ours, theirs, err := orderPair()
	if err != nil {
		return nil, err
	}
	from.ram, from.control = ramZygote, theirs
	defer theirs.Close()
	control, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("making a zygote's socket: %w", err)
	}
	z := &zygote{id: s.ID, control: control.(*net.UnixConn), ended: make(chan struct{})}
	withdrawSockets(s.Dir) // those of the VM that became the template
	v, err := d.start(ctx, s, from)
	if err != nil {
		return nil, errors.Join(err, z.control.Close())
	}
	err = ready(ctx, v)
	if err == nil {
		err = v.monitor.execute(ctx, "stop", nil, nil)
	}
	if err == nil {
		z.process = v.rec.Process
		z.pidfd, err = v.rec.Pidfd()
	}
	if err == nil {
		z.stderr, err = openErrorLog(v.rec)
	}
	if err != nil {
		err = fmt.Errorf("%w%s", err, v.lastWords())
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		if z.pidfd != nil {
			z.pidfd.Close()
		}
		return nil, errors.Join(err, v.Kill(ending), z.control.Close())
	}
	v.Release() // it closes its ends in its own time: until then it is busy
	go z.watch()
	return z, nil
}

// watch reaps the process.
func (z *zygote) watch() {
	defer close(z.ended)
	_ = waitExit(z.pidfd)
	_, _ = unix.Wait4(z.process.PID, nil, 0, nil)
	z.pidfd.Close()
	z.stderr.Close()
}

// close ends it. VMs that it has forked live on.
func (z *zygote) close() error {
	err := z.process.KillProcess()
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.control != nil {
		err = errors.Join(err, z.control.Close())
		z.control = nil
	}
	if err == nil {
		<-z.ended
	}
	return err
}

// fork starts the VM of s as a child of the zygote. files replace the descriptors targets of it. launched is told the
// child's pid before it does anything.
func (z *zygote) fork(ctx context.Context, s hypervisor.Spec, targets []int32, files []*os.File, launched func(pid int) error) (err error) {
	text, err := newOrder(s, z.id, targets)
	if err != nil {
		return err
	}
	ours, theirs, err := orderPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	child, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return fmt.Errorf("making a vm's socket: %w", err)
	}
	defer child.Close() // a child that has not been told to begin ends
	pid, err := z.order(ctx, text, append([]*os.File{theirs}, files...))
	if err != nil {
		return forkError{err}
	}
	theirs.Close()
	defer func() {
		if err != nil { // ours to reap: it was made as a child of this process
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}()
	if err := launched(pid); err != nil {
		return fmt.Errorf("recording process %d: %w", pid, err)
	}
	if err := jail.Place(strconv.Itoa(pid), strconv.Itoa(pid), s.CgroupProcs, s.OOMScoreAdj); err != nil {
		return err
	}
	answer, err := ask(ctx, child.(*net.UnixConn), []byte("begin"), nil)
	if err != nil {
		return forkError{err}
	}
	if answer != "ready" {
		return forkError{errors.New(answer)}
	}
	z.failures.Store(0)
	return nil
}

// order has a child made, and returns its pid.
func (z *zygote) order(ctx context.Context, text []byte, files []*os.File) (pid int, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for {
		if z.control == nil {
			return 0, hypervisor.ErrTemplateGone
		}
		// Not given up before there is an answer: the next would be taken for it, and the child be nobody's.
		answer, err := ask(context.WithoutCancel(ctx), z.control, text, files)
		if err != nil {
			err = errors.Join(err, z.control.Close())
			z.control = nil
			return 0, err
		}
		if answer == "busy" {
			select {
			case <-ctx.Done():
				return 0, fmt.Errorf("the process is not ready for it: %w", ctx.Err())
			case <-time.After(busyRetry):
				continue
			}
		}
		number, ok := strings.CutPrefix(answer, "forked ")
		if !ok {
			return 0, errors.New(answer)
		}
		return strconv.Atoi(number)
	}
}

// lost tells whether the zygote can be expected to fork another time, after it did not.
func (z *zygote) lost() bool {
	_, err := hypervisor.FindProcess(z.process.PID)
	return err != nil || z.failures.Add(1) >= mostFailures
}

// ask sends a message and returns the answer.
func ask(ctx context.Context, conn *net.UnixConn, text []byte, files []*os.File) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(text, rights, nil); err != nil {
		return "", errors.Join(err, ctx.Err())
	}
	b := make([]byte, 256)
	n, err := conn.Read(b)
	if err != nil {
		return "", fmt.Errorf("no answer: %w", errors.Join(err, ctx.Err()))
	}
	return string(b[:n]), nil
}

// orderPair is a connection that keeps messages apart.
func orderPair() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a zygote's socket: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), "orders"), os.NewFile(uintptr(pair[1]), "orders"), nil
}
