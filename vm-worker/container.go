// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
)

// container is one container and what the worker holds of it.
//
// Two locks, always in this order: op serialises the commands that change what
// the container is (create, start, exec, pause, resume, delete) and may be held
// for long; mu guards the fields and is held for moments. state, list and kill
// never take op. The end of the container takes only mu.
type container struct {
	w    *Worker
	key  string
	plan *plan

	op chan struct{} // a mutex that a context can give up on: holds one token

	created chan struct{}           // closed when create has ended, either way
	cancel  context.CancelCauseFunc // ends a create under way
	ended   chan struct{}           // closed when the container is stopped or removed, and cleaned up after

	mu        sync.Mutex // guards all below
	rec       *vmv1.Container
	createErr error // why create failed, once created is closed
	sb        *sandbox
	relay     *hostProcess
	cgroup    *hostcgroup.Cgroup
	exit      *vmv1.Exit // what the guest said; the container has ended when the relay has
	signalled bool       // a kill was sent: the end is no accident
	removing  bool       // records are no longer written
	execs     map[string]*execProcess
}

// execProcess is a further process in a container.
type execProcess struct {
	rec   *vmv1.Exec
	relay *hostProcess
	gone  chan struct{} // closed when its relay has ended and its record is gone
}

func (w *Worker) newContainer(rec *vmv1.Container) *container {
	return &container{
		w: w, key: rec.Key, rec: rec,
		op:      make(chan struct{}, 1),
		created: make(chan struct{}),
		ended:   make(chan struct{}),
		cancel:  func(error) {},
		execs:   map[string]*execProcess{},
	}
}

// lock takes the operation lock or gives up with ctx.
func (c *container) lock(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return bus.Errorf(bus.DeadlineExceeded, "container %s is busy with another command: %w", c.rec.Ref.Id, ctx.Err())
	}
}

func (c *container) unlock() { <-c.op }

// snapshot returns a copy of the record, told as it is now: a container whose
// relay has ended is stopped, even before its record says so.
func (c *container) snapshot() *vmv1.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapshotLocked()
}

func (c *container) snapshotLocked() *vmv1.Container {
	rec := proto.CloneOf(c.rec)
	if rec.Status != vmv1.ContainerStatus_CONTAINER_STATUS_CREATING && c.relay != nil && c.relay.ended() {
		rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED
	}
	return rec
}

func (c *container) status() vmv1.ContainerStatus { return c.snapshot().Status }

// set changes the record and writes it.
func (c *container) set(ctx context.Context, change func(*vmv1.Container)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c.rec)
	return c.w.store.saveContainer(ctx, c.rec)
}

// live tells whether the container is created, running or paused.
func live(s vmv1.ContainerStatus) bool {
	switch s {
	case vmv1.ContainerStatus_CONTAINER_STATUS_CREATED,
		vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING,
		vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED:
		return true
	default:
		return false
	}
}

// Reasons for the end of a create that nobody waits for any more.
var (
	errRelayGone = errors.New("the container's relay ended: the caller has gone away")
	errDeleted   = errors.New("the container was deleted while it was being created")
)

// processExited hears from the guest, by the stdio channel, how a process
// ended. The process counts as ended when its relay has, which is told only
// after this: engines learn of an OOM kill before they learn of the end.
func (s *sandbox) processExited(channel uint32, code int, oom bool) {
	s.mu.Lock()
	members := slices.Collect(maps.Values(s.members))
	s.mu.Unlock()
	for _, c := range members {
		c.mu.Lock()
		mine := c.rec.Channel == channel && c.exit == nil
		if mine {
			c.exit = &vmv1.Exit{Code: int32(code), OomKilled: oom, Time: timestamppb.Now()}
			if oom {
				c.exit.Reason = "killed by the guest's kernel for want of memory"
			}
		}
		c.mu.Unlock()
		if mine && oom {
			c.tellOOM()
		}
	}
}

// oomTime bounds how long the end of a container waits for its OOM report.
const oomTime = 3 * time.Second

// tellOOM makes an OOM kill in the guest visible where engines look for one: in
// the container's host cgroup, and, for Podman and CRI-O, as the file "oom" in
// the bundle.
func (c *container) tellOOM() {
	ctx, cancel := context.WithTimeout(context.Background(), oomTime)
	defer cancel()
	c.mu.Lock()
	cgroup := c.cgroup
	c.mu.Unlock()
	if cgroup != nil {
		if err := cgroup.SignalOOM(ctx); err != nil {
			c.w.log.Warn("the host's cgroup does not show the guest's OOM kill", "container", c.rec.Ref.Id, "error", err)
		}
	}
	// The bundle's directory is root's own; a link planted in it is not followed.
	f, err := os.OpenFile(filepath.Join(c.rec.Bundle, "oom"), os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		c.w.log.Debug("no oom file in the bundle", "container", c.rec.Ref.Id, "error", err)
		return
	}
	f.Close()
}

// watchInit waits for the end of the init relay, which is the end of the
// container.
func (c *container) watchInit(relay *hostProcess) {
	if !c.w.waitProcess(relay) {
		return // the worker stops; the container lives on
	}
	c.mu.Lock()
	creating := c.rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATING
	c.mu.Unlock()
	if creating {
		c.cancel(errRelayGone)
		<-c.created
		c.mu.Lock()
		failed := c.createErr != nil
		c.mu.Unlock()
		if failed {
			return // rolled back, nothing is left
		}
	}
	c.end(context.Background())
}

// end records that the container has stopped and frees what only a living
// container needs: its part of the VM, or the VM.
func (c *container) end(ctx context.Context) {
	c.mu.Lock()
	// Nobody killed it and it never ran: its frontend died between our answer
	// and the pid-file, so no engine knows of it. Then nothing may stay.
	abandoned := c.rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATED && c.exit == nil && !c.signalled && c.sb.alive()
	exit := c.exitLocked()
	c.rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED
	c.rec.Exit = exit
	c.rec.Execs = nil
	if err := c.w.store.saveContainer(ctx, c.rec); err != nil {
		c.w.log.Error("end of container not recorded", "container", c.rec.Ref.Id, "error", err)
	}
	c.mu.Unlock()

	c.w.event(ctx, "container", c.rec.Ref.Id, "exited", map[string]string{
		"exit_code": itoa(exit.Code), "reason": exit.Reason, "oom_killed": boolText(exit.OomKilled),
	})
	c.leaveSandbox(ctx, "its last container ended")
	close(c.ended)
	if abandoned {
		c.w.log.Warn("container abandoned before it was reported, removing it", "container", c.rec.Ref.Id)
		if err := c.remove(ctx); err != nil {
			c.w.log.Error("abandoned container not removed", "container", c.rec.Ref.Id, "error", err)
		}
	}
}

// exitLocked is the exit of a container whose relay has ended.
func (c *container) exitLocked() *vmv1.Exit {
	if c.exit != nil {
		return c.exit
	}
	exit := &vmv1.Exit{Code: exitVMGone, Time: timestamppb.Now(), Reason: "its relay on the host was killed"}
	if !c.sb.alive() {
		exit.Reason = c.sb.record().EndReason
	}
	c.exit = exit
	return exit
}

// leaveSandbox takes the container out of its VM; the last one takes the VM
// with it.
func (c *container) leaveSandbox(ctx context.Context, why string) {
	s := c.sb
	s.mu.Lock()
	delete(s.members, c.key)
	last := len(s.members) == 0
	s.mu.Unlock()
	if last {
		if err := s.kill(ctx, why); err != nil {
			c.w.log.Error("vm not ended", "sandbox", s.id, "error", err)
		}
		s.endLinks()
	} else if s.alive() {
		ctx, cancel := context.WithTimeout(ctx, agentTime)
		defer cancel()
		if err := s.agentDelete(ctx, c.key); err != nil {
			c.w.log.Warn("container not removed from the guest", "container", c.rec.Ref.Id, "error", err)
		}
		if err := s.vm.DetachMounts(ctx, c.key); err != nil {
			c.w.log.Warn("mounts not detached from the VM", "container", c.rec.Ref.Id, "error", err)
		}
	}
	s.router.Detach(c.rec.Channel)
}

// remove takes away all that is left of a stopped container: cgroup, records,
// and the sandbox's directory with its last container.
func (c *container) remove(ctx context.Context) error {
	w := c.w
	var errs []error
	c.mu.Lock()
	c.removing = true
	cgroup, relay, rec := c.cgroup, c.relay, c.rec
	c.mu.Unlock()
	if cgroup != nil {
		errs = append(errs, cgroup.Destroy(ctx))
	}
	if relay != nil {
		relay.close()
	}
	w.removeRelaySocket(rec.Relay)
	errs = append(errs, w.store.removeContainer(ctx, rec))

	w.mu.Lock()
	delete(w.containers, c.key)
	empty := true
	for _, other := range w.containers {
		if other.sb == c.sb {
			empty = false
			break
		}
	}
	if empty {
		delete(w.sandboxes, c.sb.id)
	}
	w.mu.Unlock()
	if empty {
		errs = append(errs, w.store.removeSandbox(ctx, c.sb.id))
		w.event(ctx, "sandbox", c.sb.id, "removed", nil)
	}
	w.event(ctx, "container", rec.Ref.Id, "deleted", nil)
	return errors.Join(errs...)
}

// releaseRelays ends the waits of the watchers of a worker that stops; the
// relays live on.
func (c *container) releaseRelays() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.relay != nil {
		c.relay.close()
	}
	for _, x := range c.execs {
		x.relay.close()
	}
}
