// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
)

// adoptContainer puts a recorded container back into the worker's books.
func (w *Worker) adoptContainer(s *sandbox, rec *vmv1.Container) *container {
	c := w.newContainer(s, rec)
	close(c.created)
	c.exit = rec.Exit
	c.signalled = rec.Started != nil || rec.StartOperationId != ""
	cg, err := hostcgroup.Load(c.cgroupFile())
	if err == nil {
		c.cgroup = cg
	} else if !errors.Is(err, fs.ErrNotExist) {
		w.log.Error("cgroup of a container not found again", "container", rec.Ref.Id, "error", err)
	}
	w.mu.Lock()
	w.containers[rec.Key] = c
	w.mu.Unlock()
	if live(rec.Status) {
		s.members[rec.Key] = c // not join: the VM may be dead, and this one still to be told
	}
	return c
}

// half tells whether no worker finished the container's create.
func (c *container) half() bool {
	return c.rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATING
}

// undoHalf removes a container whose create no worker finished.
func (c *container) undoHalf(ctx context.Context) {
	s := c.sb
	s.mu.Lock()
	alone := len(s.members) == 0
	s.mu.Unlock()
	if alone {
		if err := s.kill(ctx, "its only container was never completed"); err != nil {
			c.w.log.Error("vm not ended", "sandbox", s.id, "error", err)
		}
		s.endLinks()
	} else {
		c.clearVM(ctx) // not behind the back of a new container with the same name
	}
	c.mu.Lock()
	c.relay = findRelay(c.rec.Relay)
	c.mu.Unlock()
	if err := c.remove(ctx); err != nil { // ends the relay first
		c.w.log.Error("half-made container not removed; delete it to try again", "container", c.rec.Ref.Id, "error", err)
		c.park(ctx, "it was never created, and could not be wholly undone")
	}
}

// resume takes up the watch over a recorded container and its execs.
func (c *container) resume() {
	if !live(c.status()) {
		c.w.tasks.Go(c.endAgain)
		return
	}
	relay := findRelay(c.rec.Relay)
	c.mu.Lock()
	c.relay = relay
	execs := append([]*vmv1.Exec(nil), c.rec.Execs...)
	c.mu.Unlock()
	for _, rec := range execs {
		c.resumeExec(rec)
	}
	c.w.tasks.Go(func() { c.watchInit(relay) })
	c.w.tasks.Go(func() { c.reattach(relay, c.rec.Channel, c.rec.Relay.Socket) })
}

// endAgain does for a container that has ended what a worker that died after it wrote
// that down may not have done.
func (c *container) endAgain() {
	defer close(c.ended)
	c.sb.mu.Lock()
	shared := len(c.sb.members) > 0 // else the VM ends, or has
	c.sb.mu.Unlock()
	if shared {
		c.clearVM(context.Background())
	}
}

// resumeExec takes up the watch over a recorded exec; one that ended unseen is
// cleaned up after.
func (c *container) resumeExec(rec *vmv1.Exec) {
	relay := findRelay(rec.Relay)
	x := newExec(rec, relay)
	close(x.begun)
	c.mu.Lock()
	c.execs[rec.Id] = x
	c.mu.Unlock()
	c.w.tasks.Go(func() { c.watchExec(x) })
	c.w.tasks.Go(func() {
		// The worker that began the exec may have died while the relay was on its way.
		if cgroup := c.hostCgroup(); cgroup != nil && !cgroup.Holds(relay.pid) {
			if err := c.takeExecRelay(x); err != nil {
				c.w.log.Error("relay of an exec is not in the cgroup of its container", "container", c.rec.Ref.Id, "exec", rec.Id, "error", err)
			}
		}
		c.reattach(relay, rec.Channel, rec.Relay.Socket)
	})
}

// Between two attempts to reach a relay that lives and does not answer: somebody
// has stopped it with a signal.
const (
	reattachMin = 100 * time.Millisecond
	reattachMax = 5 * time.Second
)

// reattach joins a relay to the guest again, however long the relay takes. One
// whose VM is dead needs no joining: it holds a handle of the VM and ends by
// itself.
func (c *container) reattach(relay *hostProcess, channel uint32, socket string) {
	ctx := c.w.context()
	for pause := reattachMin; ; pause = min(2*pause, reattachMax) {
		if !c.sb.alive() || relay.ended() {
			return
		}
		err := c.attachRelay(ctx, channel, socket)
		if err == nil || ctx.Err() != nil {
			return
		}
		c.w.log.Warn("relay not attached again", "container", c.rec.Ref.Id, "channel", channel, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// settle records what the guest says of a container, where the record tells of
// less: a worker died between a command and its record.
func (c *container) settle(ctx context.Context, status string) {
	started := false
	err := c.set(ctx, func(rec *vmv1.Container) {
		switch was := rec.Status; {
		case was == vmv1.ContainerStatus_CONTAINER_STATUS_CREATED && status == "paused" && rec.StartOperationId == "":
			rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED
		case was == vmv1.ContainerStatus_CONTAINER_STATUS_CREATED && (status == "running" || status == "paused"):
			started = true
			rec.Started = timestamppb.Now()
			rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
		case was == vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING && status == "paused":
			rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED
		case was == vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED && status == "created":
			rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_CREATED
		case was == vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED && status == "running":
			rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
		}
	})
	if err != nil {
		c.w.log.Error("container record not written", "container", c.rec.Ref.Id, "error", err)
	}
	if started {
		c.w.event(ctx, "container", c.rec.Ref.Id, "started", map[string]string{"sandbox": c.sb.id})
	}
}
