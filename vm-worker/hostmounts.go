// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// mirrorTime bounds one look at the host's mounts for one container.
const mirrorTime = 10 * time.Second

// watchHostMounts shows containers what is mounted later on the host beneath
// the directories they follow, and takes away what is unmounted. The first look
// is for what changed while no worker ran.
func (w *Worker) watchHostMounts() {
	// Not an os.File: Go's poller would wait for it too, and a change is told once per open file.
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		w.log.Error("mounts of the host are not followed", "error", err)
		return
	}
	defer unix.Close(table)
	ending, end, err := os.Pipe()
	if err != nil {
		w.log.Error("mounts of the host are not followed", "error", err)
		return
	}
	defer ending.Close()
	stop := context.AfterFunc(w.context(), func() { end.Close() })
	defer func() {
		if stop() {
			end.Close()
		}
	}()
	said := map[string]string{}
	w.mirrorAll(said) // the table is open: what changes from here on is told
	for {
		changed, err := awaitChange(table, ending)
		switch {
		case err != nil:
			w.log.Error("mounts of the host are no longer followed", "error", err)
			return
		case !changed:
			return // the worker ends; the next one goes on
		}
		w.mirrorAll(said)
	}
}

// awaitChange waits until the mount table has changed (proc_pid_mountinfo(5): it is
// told as an exceptional condition), or the other end of ending is closed.
func awaitChange(table int, ending *os.File) (changed bool, err error) {
	fds := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(ending.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("waiting for a change of the mount table: %w", err)
		default:
			return fds[1].Revents == 0, nil
		}
	}
}

// mirrorAll looks for every container that follows a directory. What goes wrong
// is logged once and not at each change of the host's mounts: said holds the last complaint, by container.
func (w *Worker) mirrorAll(said map[string]string) {
	w.mu.Lock()
	var following []*container
	for _, c := range w.containers {
		if len(c.rec.Followed) > 0 {
			following = append(following, c)
		}
	}
	w.mu.Unlock()
	for _, c := range following {
		if w.context().Err() != nil {
			return
		}
		if !live(c.status()) {
			delete(said, c.key)
			continue // a create looks itself, before it ends
		}
		err := c.mirrorMounts(w.context())
		switch {
		case err == nil:
			delete(said, c.key)
		case live(c.status()) && said[c.key] != err.Error():
			said[c.key] = err.Error()
			w.log.Warn("the container does not see the mounts of the host as they are", "container", c.rec.Ref.Id, "error", err)
		}
	}
}

// mirrorMounts makes the mounts beneath the directories that the container
// follows those of the host.
func (c *container) mirrorMounts(ctx context.Context) error {
	if len(c.rec.Followed) == 0 {
		return nil
	}
	vm := c.sb.living()
	if vm == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, mirrorTime)
	defer cancel()
	c.mirroring.Lock() // no other lock is taken under it
	defer c.mirroring.Unlock()
	var errs []error
	for _, f := range c.rec.Followed {
		errs = append(errs, vm.MirrorMounts(ctx, hypervisor.Followed{
			Source: f.Source, MountID: f.MountId, Nested: f.Nested, Place: f.Place, ReadOnly: f.ReadOnly,
		}))
	}
	return errors.Join(errs...)
}

// followed are the directories a container follows, with their places.
func (p *plan) followed() []*vmv1.Followed {
	var list []*vmv1.Followed
	for _, m := range p.mounts {
		if f := m.Followed; f != nil {
			list = append(list, &vmv1.Followed{
				Source: f.Source, MountId: f.MountId, Nested: f.Nested, Place: m.source, ReadOnly: m.ReadOnly,
			})
		}
	}
	return list
}
