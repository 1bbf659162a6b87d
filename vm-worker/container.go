// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
)

// container is one container and what the worker holds of it.
//
// Two locks, always in this order: op serialises the commands that change what
// the container is (start, pause, resume, delete) and may be held for long; mu
// guards the fields and is held for moments, a write of the record included.
// state, list, kill and exec never take op. The end of the container takes only mu.
type container struct {
	w   *Worker
	key string
	sb  *sandbox

	op chan struct{} // a mutex that a context can give up on: holds one token

	created chan struct{} // closed when create has ended, either way
	ended   chan struct{} // closed when the container is stopped and its part of the VM is cleaned up

	mirroring sync.Mutex // held while the mounts of the host are compared with the VM's; a leaf

	mu        sync.Mutex              // guards all below
	rec       *vmv1.Container         // the fields set by reserve never change and are read without mu
	cancel    context.CancelCauseFunc // ends a create under way
	createErr error                   // why create failed, once created is closed
	relay     *hostProcess
	cgroup    *hostcgroup.Cgroup // nil when there is none, or it was not found again
	exit      *vmv1.Exit         // what the guest said; the container has ended when the relay has
	signalled bool               // it was started or killed: an end is no accident
	oomKills  uint64             // what was told of kills by the guest's kernel
	oomTold   time.Time          // when last
	starting  chan struct{}      // closed when the start under way is told, nil without one
	removing  bool               // records are no longer written
	execs     map[string]*execProcess
}

func (w *Worker) newContainer(s *sandbox, rec *vmv1.Container) *container {
	return &container{
		w: w, key: rec.Key, sb: s, rec: rec,
		op:      make(chan struct{}, 1),
		created: make(chan struct{}),
		ended:   make(chan struct{}),
		cancel:  func(error) {},
		execs:   map[string]*execProcess{},
	}
}

// acquire finds a container and takes its operation lock. The caller unlocks.
func (w *Worker) acquire(ctx context.Context, ref *vmv1.ContainerRef) (*container, error) {
	for {
		c, err := w.find(ref)
		if err != nil {
			return nil, err
		}
		if err := c.lock(ctx); err != nil {
			return nil, err
		}
		if !w.forgotten(c) {
			return c, nil
		}
		c.unlock() // it was removed meanwhile; another may have its id
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
// relay has ended is stopped, even before its record says so, and what the guest
// said of its exit counts only then.
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
	if live(rec.Status) {
		rec.Exit = nil
	}
	return rec
}

func (c *container) status() vmv1.ContainerStatus { return c.snapshot().Status }

// set changes the record and writes it.
func (c *container) set(ctx context.Context, change func(*vmv1.Container)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c.rec)
	return c.saveLocked(ctx)
}

// saveLocked writes the record, unless the container is being removed: what is
// gone must not come back. The caller holds c.mu.
func (c *container) saveLocked(ctx context.Context) error {
	if c.removing {
		return nil
	}
	return c.w.store.saveContainer(ctx, c.rec)
}

func (c *container) hostCgroup() *hostcgroup.Cgroup {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cgroup
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
