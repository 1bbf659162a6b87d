// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"time"

	vmv1 "bulkhead/proto/vm/v1"
)

const (
	// endTime bounds what the end of a container has to do.
	endTime = 30 * time.Second
	// tellTime bounds the wait for an event that belongs before another.
	tellTime = 2 * time.Second
)

// watchInit waits for the end of the init relay, which is the end of the
// container.
func (c *container) watchInit(relay *hostProcess) {
	if !relay.wait() {
		return // the worker stops; the container lives on
	}
	c.mu.Lock()
	cancel := c.cancel
	c.mu.Unlock()
	cancel(errRelayGone)
	<-c.created // a create ends soon, cancelled or not
	c.mu.Lock()
	failed := c.createErr != nil
	c.mu.Unlock()
	if failed {
		return // rolled back
	}
	c.end(context.Background())
}

// end records that the container has stopped and frees what only a living
// container needs: its part of the VM, or the VM.
func (c *container) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	c.mu.Lock()
	told, starting := c.exit != nil, c.starting
	c.mu.Unlock()
	awaitTold(starting)
	vmGone := ""
	if !told {
		vmGone = c.sb.deathReason(ctx)
	}

	c.mu.Lock()
	// Nobody killed it and it never ran: its frontend died between our answer
	// and the pid-file, so no engine knows of it. Then nothing may stay.
	abandoned := c.rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATED && c.exit == nil && !c.signalled && vmGone == ""
	exit := c.exitLocked(vmGone)
	c.rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED
	c.rec.Exit = exit
	c.rec.Execs = nil
	if err := c.saveLocked(ctx); err != nil {
		c.w.log.Error("end of container not recorded", "container", c.rec.Ref.Id, "error", err)
	}
	c.mu.Unlock()

	c.w.event(ctx, "container", c.rec.Ref.Id, "exited", map[string]string{
		"exit_code": itoa(exit.Code), "reason": exit.Reason, "oom_killed": boolText(exit.OomKilled),
	})
	c.leaveSandbox(ctx, "its last container ended")
	c.endExecs(ctx)
	close(c.ended)
	if abandoned {
		c.removeAbandoned(ctx)
	}
}

// awaitTold lets the command under way tell its event before the event of the
// end; it is a courtesy to readers and bounded as one.
func awaitTold(under chan struct{}) {
	if under == nil {
		return
	}
	select {
	case <-under:
	case <-time.After(tellTime):
	}
}

func (c *container) removeAbandoned(ctx context.Context) {
	c.w.log.Warn("container abandoned before it was reported, removing it", "container", c.rec.Ref.Id)
	err := c.lock(ctx)
	if err == nil {
		defer c.unlock()
		if c.w.forgotten(c) {
			return // a delete was faster
		}
		if err = c.releaseVM(ctx); err == nil {
			err = c.remove(ctx)
		}
	}
	if err != nil {
		c.w.log.Error("abandoned container not removed", "container", c.rec.Ref.Id, "error", err)
	}
}

// leaveSandbox takes the container out of its VM; the last one takes the VM
// with it.
func (c *container) leaveSandbox(ctx context.Context, why string) {
	s := c.sb
	if s.leave(c.key) {
		if err := s.kill(ctx, why); err != nil {
			c.w.log.Error("vm not ended", "sandbox", s.id, "error", err)
		}
		s.endLinks()
	} else {
		c.clearVM(ctx)
	}
	s.router.Detach(c.rec.Channel)
}

// clearVM takes out of a VM in which others live what the container had of it. Doing
// it again is harmless. A guest that gives nothing back holds up nobody for long.
func (c *container) clearVM(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	vm := c.sb.living()
	if vm == nil {
		return
	}
	if err := c.sb.agentDelete(ctx, c.key); err != nil {
		c.w.log.Warn("container not removed from the guest", "container", c.rec.Ref.Id, "error", err)
	}
	if err := vm.DetachMounts(ctx, c.key); err != nil {
		c.w.log.Warn("mounts not detached from the VM", "container", c.rec.Ref.Id, "error", err)
	}
	if err := vm.DetachDisks(ctx, diskPrefix(c.key)); err != nil {
		c.w.log.Warn("block devices not detached from the VM", "container", c.rec.Ref.Id, "error", err)
	}
	c.sb.refit(ctx)
}

// remove takes away all that is left of a stopped container: cgroup, records,
// and the sandbox's directory with its last container. When something does not
// go, its record stays, so that the removal can be repeated.
func (c *container) remove(ctx context.Context) error {
	w := c.w
	c.mu.Lock()
	cgroup, relay := c.cgroup, c.relay
	c.mu.Unlock()
	if err := endProcess(ctx, relay, 0); err != nil {
		return err
	}
	if cgroup != nil {
		if err := cgroup.Destroy(ctx); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.removing = true
	c.mu.Unlock()
	if relay != nil {
		relay.close()
	}
	w.removeRelaySocket(c.rec.Relay)
	errs := []error{w.store.removeContainer(ctx, c.rec)}

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
		errs = append(errs, c.sb.remove(ctx))
	} else {
		errs = append(errs, c.sb.forget(ctx, c.key))
	}
	w.event(ctx, "container", c.rec.Ref.Id, "deleted", nil)
	return errors.Join(errs...)
}

// park keeps a container that could not be removed as a stopped one, so that a
// person sees it and a delete can try again.
func (c *container) park(ctx context.Context, why string) {
	c.mu.Lock()
	c.removing = false
	c.rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED
	c.rec.Exit = c.exitLocked(why)
	if err := c.saveLocked(ctx); err != nil {
		c.w.log.Error("record not written", "container", c.rec.Ref.Id, "error", err)
	}
	c.mu.Unlock()
	close(c.ended)
}
