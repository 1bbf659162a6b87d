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
	lost    atomic.Bool   // no order reaches it any more

	mu      sync.Mutex
	control *net.UnixConn // guarded by mu: one order at a time

	failures atomic.Int32 // in a row
}

const (
	// orderTime bounds the answer to an order, of which some ms are work.
	orderTime = 15 * time.Second
	// busyRetry is the pause after a zygote was not ready to fork: a connection it is about to close.
	busyRetry = 5 * time.Millisecond
	// busyTime bounds how long it may be so: long before whoever wants the VM gives up, as there is another way.
	busyTime = 5 * time.Second
	// unknownPause is how often a child that cannot be waited for by its pid is looked for.
	unknownPause = 100 * time.Millisecond
	// idleTime is longer than what the guest's kernel and agent wait until they tidy up.
	idleTime = 3 * time.Second
	// mostFailures is how many times in a row a zygote may fail to fork until it is given up.
	mostFailures = 3
)

// forkError is the failure of a zygote; any other error of fork would also meet a VM that is started.
type forkError struct{ err error }

func (e forkError) Error() string { return "forking a vm: " + e.err.Error() }
func (e forkError) Unwrap() error { return e.err }

// makeZygote starts a VM from the template, has its guest made ready once more, and stops it.
func (d *Driver) makeZygote(ctx context.Context, s hypervisor.Spec, t *template, ready func(context.Context, hypervisor.VM) error) (_ *zygote, err error) {
	from, err := d.open(t, s)
	if err != nil {
		return nil, err
	}
	defer from.close()
	ours, theirs, err := orderPair()
	if err != nil {
		return nil, err
	}
	from.ram, from.control = ramZygote, theirs
	control, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, fmt.Errorf("making a zygote's socket: %w", err)
	}
	z := &zygote{id: s.ID, control: control.(*net.UnixConn), ended: make(chan struct{})}
	withdrawSockets(s.Dir) // those of the VM that became the template
	v, err := d.start(ctx, s, from)
	theirs.Close() // its end is noticed here when it ends
	if err != nil {
		return nil, errors.Join(err, z.control.Close())
	}
	if err = ready(ctx, v); err == nil {
		err = idle(ctx)
	}
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
	withdrawSockets(s.Dir) // nobody is to connect to it any more
	if err := z.try(ctx, s); err != nil {
		return nil, errors.Join(err, z.close())
	}
	return z, nil
}

// try has it fork once, a child that is told nothing: so what it lacks is known before a VM is wanted.
func (z *zygote) try(ctx context.Context, s hypervisor.Spec) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("trying to fork: %w", err)
	}
	defer null.Close()
	files := make([]*os.File, len(forkTargets()))
	for i := range files {
		files[i] = null
	}
	pid, child, err := z.bear(ctx, s, files)
	if err != nil {
		return err
	}
	child.Close()
	_ = unix.Kill(pid, unix.SIGKILL) // it ends by itself, if it is not held up
	reap(pid)
	return nil
}

// idle lets the guest do what it does when nobody wants anything of it, so that children find that translated, too: its
// timers, memory it gives back to the host (after two seconds), what its kernel puts off.
func idle(ctx context.Context) error {
	select {
	case <-time.After(idleTime):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("letting the guest of a zygote idle: %w", ctx.Err())
	}
}

// watch reaps the process.
func (z *zygote) watch() {
	defer close(z.ended)
	_ = waitExit(z.pidfd)
	z.lost.Store(true)
	reap(z.process.PID)
	z.pidfd.Close()
	z.stderr.Close()
}

// alive tells whether it can be expected to fork.
func (z *zygote) alive() bool { return !z.lost.Load() && z.failures.Load() < mostFailures }

func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
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
	if err != nil {
		return err
	}
	select {
	case <-z.ended:
		return nil
	case <-time.After(killTimeout):
		return fmt.Errorf("process %d was killed and does not end", z.process.PID)
	}
}

// fork starts the VM of s as a child of the zygote. files replace the descriptors forkTargets of it. launched is told
// the child's pid before it does anything.
func (z *zygote) fork(ctx context.Context, s hypervisor.Spec, files []*os.File, launched func(pid int) error) (err error) {
	pid, child, err := z.bear(ctx, s, files)
	if err != nil {
		return err
	}
	defer child.Close() // a child that has not been told to begin ends
	defer func() {
		if err != nil { // ours to reap: it was made as a child of this process
			_ = unix.Kill(pid, unix.SIGKILL)
			reap(pid)
		}
	}()
	if err := launched(pid); err != nil {
		return fmt.Errorf("recording process %d: %w", pid, err)
	}
	if err := jail.Place(strconv.Itoa(pid), strconv.Itoa(pid), s.CgroupProcs, s.OOMScoreAdj); err != nil {
		return err
	}
	answer, err := ask(ctx, child, []byte("begin"), nil)
	if err != nil {
		return forkError{err}
	}
	if answer != "ready" {
		return forkError{errors.New(answer)}
	}
	z.failures.Store(0)
	return nil
}

// bear has a child made that waits to be told to begin, and returns its pid and the connection to it.
func (z *zygote) bear(ctx context.Context, s hypervisor.Spec, files []*os.File) (pid int, _ *net.UnixConn, err error) {
	text, err := newOrder(s, z.id, forkTargets())
	if err != nil {
		return 0, nil, err
	}
	ours, theirs, err := orderPair()
	if err != nil {
		return 0, nil, err
	}
	defer theirs.Close()
	child, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return 0, nil, fmt.Errorf("making a vm's socket: %w", err)
	}
	pid, err = z.order(ctx, text, append([]*os.File{theirs}, files...))
	if err != nil {
		child.Close()
		return 0, nil, forkError{err}
	}
	return pid, child.(*net.UnixConn), nil
}

// order has a child made, and returns its pid.
func (z *zygote) order(ctx context.Context, text []byte, files []*os.File) (pid int, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for giveUp := time.Now().Add(busyTime); ; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if z.control == nil {
			return 0, hypervisor.ErrTemplateGone
		}
		// Not given up before there is an answer: the next would be taken for it, and the child be nobody's.
		answer, err := ask(context.WithoutCancel(ctx), z.control, text, files)
		if err != nil {
			err = errors.Join(err, z.control.Close())
			z.control = nil
			z.lost.Store(true)
			go z.reapUnknown()
			return 0, err
		}
		if answer == "busy" {
			if time.Now().After(giveUp) {
				return 0, fmt.Errorf("the process has not been ready for it for %s", busyTime)
			}
			time.Sleep(busyRetry)
			continue
		}
		number, ok := strings.CutPrefix(answer, "forked ")
		if !ok {
			return 0, errors.New(answer)
		}
		return strconv.Atoi(number)
	}
}

// reapUnknown waits for a child whose pid was not told, as its zygote died or was too late. It ends by itself, as its
// connection is closed. Until it begins, a child is in the process group of the zygote, which leads it.
func (z *zygote) reapUnknown() {
	for {
		switch pid, err := unix.Wait4(-z.process.PID, nil, unix.WNOHANG, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return // none is left
		case pid == 0:
			time.Sleep(unknownPause)
		}
	}
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
