// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"google.golang.org/protobuf/types/known/timestamppb"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/hypervisor"
)

// cgroupPrefix names the description of a container's host cgroup in its
// sandbox's directory.
const cgroupPrefix = "cgroup-"

// reconcile makes what the worker holds agree with what exists: it adopts the
// VMs that live, finishes what was half made or half removed, and publishes the
// records that hold. The directories are believed; the KV buckets are not.
func (w *Worker) reconcile(ctx context.Context) error {
	found, err := w.store.load()
	if err != nil {
		w.log.Error("some records could not be read; what they speak of is removed", "error", err)
	}
	for id, st := range found {
		if len(st.containers) == 0 {
			w.discard(ctx, id)
			continue
		}
		w.adopt(ctx, st)
	}
	return w.sweepBuckets(ctx)
}

// adopt takes back one sandbox and its containers.
func (w *Worker) adopt(ctx context.Context, st *stored) {
	s := w.newSandbox(st.sandbox)
	log := w.log.With("sandbox", s.id)
	for _, rec := range st.containers {
		s.nextChannel = max(s.nextChannel, rec.Channel+1)
		for _, e := range rec.Execs {
			s.nextChannel = max(s.nextChannel, e.Channel+1)
		}
	}
	vm, err := w.adoptable(ctx, s.id)
	if err != nil && !errors.Is(err, hypervisor.ErrGone) && !errors.Is(err, fs.ErrNotExist) {
		log.Error("vm cannot be adopted, ending it", "error", err)
		w.killRecorded(s.id)
	}
	if vm == nil {
		s.rec.State = "stopped"
		if s.rec.EndReason == "" {
			s.rec.EndReason = "its VM ended while no worker was running"
		}
	}
	w.mu.Lock()
	w.sandboxes[s.id] = s
	w.mu.Unlock()

	var half []*container
	for _, rec := range st.containers {
		c := w.adoptContainer(s, rec)
		if rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATING {
			half = append(half, c)
		}
	}
	if vm != nil {
		s.adoptVM(vm)
	}
	for _, c := range half {
		log.Info("finishing a create that was cut short: it is undone", "container", c.rec.Ref.Id)
		c.undoHalf(ctx)
	}
	w.mu.Lock()
	members := make([]*container, 0, len(w.containers))
	for _, c := range w.containers {
		if c.sb == s {
			members = append(members, c)
		}
	}
	w.mu.Unlock()
	for _, c := range members {
		c.resume(ctx)
	}
	if err := s.update(ctx, func(*vmv1.Sandbox) {}); err != nil && len(members) > 0 {
		log.Error("sandbox record not written", "error", err)
	}
	log.Info("sandbox taken back", "containers", len(members), "vm_alive", vm != nil)
}

// adoptable returns the VM of a sandbox if it lives.
func (w *Worker) adoptable(ctx context.Context, id string) (hypervisor.VM, error) {
	rec, err := hypervisor.LoadRecord(w.store.sandboxDir(id))
	if err != nil {
		return nil, err
	}
	return w.driver.Adopt(ctx, rec)
}

// killRecorded ends the process of a VM that cannot be adopted.
func (w *Worker) killRecorded(id string) {
	rec, err := hypervisor.LoadRecord(w.store.sandboxDir(id))
	if err == nil {
		err = rec.KillProcess()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Error("process of a lost VM not killed", "sandbox", id, "error", err)
	}
}

// adoptContainer puts a recorded container back into the worker's books.
func (w *Worker) adoptContainer(s *sandbox, rec *vmv1.Container) *container {
	c := w.newContainer(rec)
	c.sb = s
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
		s.mu.Lock()
		s.members[rec.Key] = c
		s.mu.Unlock()
	}
	return c
}

func (c *container) cgroupFile() string {
	return filepath.Join(c.w.store.sandboxDir(c.sb.id), cgroupPrefix+c.key+".json")
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
	}
	if relay, err := openRelay(c.rec.Relay); err == nil {
		c.relay = relay
		if err := endProcess(ctx, relay); err != nil {
			c.w.log.Error("relay of a half-made container not ended", "container", c.rec.Ref.Id, "error", err)
		}
	}
	if err := c.remove(ctx); err != nil {
		c.w.log.Error("half-made container not removed", "container", c.rec.Ref.Id, "error", err)
	}
}

// resume takes up the watch over a recorded container and its execs.
func (c *container) resume(ctx context.Context) {
	w := c.w
	if !live(c.rec.Status) {
		close(c.ended)
		if err := w.store.saveContainer(ctx, c.rec); err != nil {
			w.log.Error("container record not written", "container", c.rec.Ref.Id, "error", err)
		}
		return
	}
	relay, err := openRelay(c.rec.Relay)
	if err != nil { // its relay ended while no worker was running
		if c.exit == nil {
			c.exit = &vmv1.Exit{Code: exitVMGone, Time: timestamppb.Now(), Reason: "its relay ended while no worker was running"}
		}
		c.end(ctx)
		return
	}
	c.relay = relay
	w.tasks.Go(func() { c.watchInit(relay) })
	c.reattach(ctx, c.rec.Channel, c.rec.Relay.Socket)
	for _, rec := range append([]*vmv1.Exec(nil), c.rec.Execs...) {
		c.resumeExec(ctx, rec)
	}
	if err := w.store.saveContainer(ctx, c.rec); err != nil {
		w.log.Error("container record not written", "container", c.rec.Ref.Id, "error", err)
	}
}

func (c *container) resumeExec(ctx context.Context, rec *vmv1.Exec) {
	x := &execProcess{rec: rec, gone: make(chan struct{})}
	relay, err := openRelay(rec.Relay)
	if err != nil {
		c.mu.Lock()
		for i, e := range c.rec.Execs {
			if e.Id == rec.Id {
				c.rec.Execs = append(c.rec.Execs[:i], c.rec.Execs[i+1:]...)
				break
			}
		}
		c.mu.Unlock()
		return
	}
	x.relay = relay
	c.mu.Lock()
	c.execs[rec.Id] = x
	c.mu.Unlock()
	c.w.tasks.Go(func() { c.watchExec(x) })
	c.reattach(ctx, rec.Channel, rec.Relay.Socket)
}

// reattach joins a relay to the guest again. A relay whose VM is dead needs no
// joining: it holds a handle of the VM and ends by itself.
func (c *container) reattach(ctx context.Context, channel uint32, socket string) {
	if !c.sb.alive() {
		return
	}
	if err := c.attachRelay(ctx, channel, socket); err != nil {
		c.w.log.Warn("relay not attached again", "container", c.rec.Ref.Id, "channel", channel, "error", err)
	}
}

// discard removes a sandbox that holds no container.
func (w *Worker) discard(ctx context.Context, id string) {
	w.killRecorded(id)
	if err := w.store.removeSandbox(ctx, id); err != nil {
		w.log.Error("empty sandbox not removed", "sandbox", id, "error", err)
	}
}

// sweepBuckets withdraws published records that speak of nothing.
func (w *Worker) sweepBuckets(ctx context.Context) error {
	keys, err := w.store.containers.Keys(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range keys {
		if _, ok := w.containers[k]; !ok {
			if err := w.store.containers.Delete(ctx, k); err != nil {
				return err
			}
		}
	}
	ids, err := w.store.sandboxes.Keys(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, ok := w.sandboxes[id]; !ok {
			if err := w.store.sandboxes.Delete(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}
