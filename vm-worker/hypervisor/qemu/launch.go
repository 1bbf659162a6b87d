// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"bulkhead/vm-worker/hypervisor"

	"golang.org/x/sys/unix"
)

// launch is a VM on its way: what it is given, and what is written down of it.
type launch struct {
	spec    hypervisor.Spec
	rec     hypervisor.Record
	sockets []*os.File // listening
	stderr  *os.File
}

// prepare writes the first record and makes the VM's sockets and its error log.
func (d *Driver) prepare(s hypervisor.Spec) (_ *launch, err error) {
	l := &launch{spec: s, rec: hypervisor.NewRecord(Name, s)}
	if err := l.rec.Save(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.hand()
		}
	}()
	for _, name := range sockets {
		f, err := listen(s.Dir, name)
		if err != nil {
			return nil, err
		}
		l.sockets = append(l.sockets, f)
	}
	l.stderr, err = newErrorLog()
	return l, err
}

// hand closes the sockets, which are QEMU's alone then: the end of one that cannot start is the end of them.
func (l *launch) hand() {
	for _, f := range l.sockets {
		f.Close()
	}
	l.sockets = nil
}

// withdrawSockets takes the names of a VM's sockets away, so that another can be in its directory.
func withdrawSockets(dir string) {
	for _, name := range sockets {
		_ = os.Remove(filepath.Join(dir, name+".sock"))
	}
}

// launched writes down the process, before it is let run.
func (l *launch) launched(pid int) (err error) {
	if l.rec.Process, err = hypervisor.FindProcess(pid); err != nil {
		return err
	}
	if err := l.rec.Save(); err != nil {
		return err
	}
	if l.spec.Launched != nil {
		return l.spec.Launched(l.rec)
	}
	return nil
}

// failed is the error of a launch of which no process is left.
func (l *launch) failed(err error) error {
	return errors.Join(withErrorLog(err, l.stderr), l.stderr.Close())
}

// takeLaunched connects to the QEMU that runs, and ends it when that fails.
func (d *Driver) takeLaunched(ctx context.Context, l *launch, from origin) (*vm, error) {
	l.hand()
	v, err := d.take(ctx, l.rec, l.stderr, from)
	if err != nil {
		_ = l.rec.KillProcess()
		_, _ = unix.Wait4(l.rec.PID, nil, 0, nil)
		return nil, l.failed(err)
	}
	return v, nil
}

// forkTargets are the descriptors of which each VM has its own: the error log and the sockets.
func forkTargets() []int32 {
	targets := []int32{2}
	for i := range sockets {
		targets = append(targets, int32(3+i))
	}
	return targets
}

// fork starts the VM as a child of the zygote.
func (d *Driver) fork(ctx context.Context, s hypervisor.Spec, z *zygote) (*vm, error) {
	if err := checkSpec(s); err != nil {
		return nil, err
	}
	l, err := d.prepare(s)
	if err != nil {
		return nil, err
	}
	defer l.hand()
	if err := z.fork(ctx, s, append([]*os.File{l.stderr}, l.sockets...), l.launched); err != nil {
		withdrawSockets(s.Dir)
		return nil, l.failed(err)
	}
	v, err := d.takeLaunched(ctx, l, origin{ram: ramForked})
	if err != nil {
		withdrawSockets(s.Dir)
		return nil, err
	}
	v.forked = true
	return v, nil
}
