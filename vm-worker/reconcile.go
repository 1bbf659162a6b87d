// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/hypervisor"
)

// cgroupPrefix names the description of a container's host cgroup in its
// sandbox's directory.
const cgroupPrefix = "cgroup-"

func (c *container) cgroupFile() string {
	return filepath.Join(c.w.store.sandboxDir(c.sb.id), cgroupPrefix+c.key+".json")
}

// reconcile makes what the worker holds agree with what exists: it adopts the
// VMs that live, finishes what was half made or half removed, and publishes the
// records that hold. The directories are believed; the KV buckets are not.
func (w *Worker) reconcile(ctx context.Context) error {
	found, err := w.store.load()
	if err != nil {
		w.log.Error("some records could not be read; what they speak of is removed", "error", err)
	}
	for id, st := range found {
		if err := ctx.Err(); err != nil {
			return err // the next start goes on
		}
		if len(st.containers) == 0 {
			w.discard(ctx, id)
			continue
		}
		if err := w.adopt(ctx, st); err != nil {
			return err
		}
	}
	return w.publishAll(ctx)
}

// adopt takes back one sandbox and its containers.
func (w *Worker) adopt(ctx context.Context, st *stored) error {
	vm, err := w.adoptable(ctx, st.sandbox.Id)
	if err != nil && ctx.Err() != nil {
		return err // this worker ends already; that is no reason to end a VM
	}
	s := w.newSandbox(st.sandbox)
	log := w.log.With("sandbox", s.id)
	if err != nil && !errors.Is(err, hypervisor.ErrGone) && !errors.Is(err, fs.ErrNotExist) {
		log.Error("vm cannot be adopted, ending it", "error", err)
		if err := w.killRecorded(ctx, s.id); err != nil {
			log.Error("process of a lost VM not ended", "error", err)
		}
	}
	var used []uint32
	for _, rec := range st.containers {
		used = append(used, rec.Channel)
		for _, e := range rec.Execs {
			used = append(used, e.Channel)
		}
	}
	s.channelsAfter(ctx, used)
	if vm == nil {
		s.closing = true
		if s.rec.EndReason == "" {
			s.rec.EndReason = "its VM ended while no worker was running"
		}
		if s.rec.State != "stopped" {
			s.rec.State = "stopped"
			w.event(ctx, "sandbox", s.id, "stopped", map[string]string{"reason": s.rec.EndReason})
		}
	}
	w.mu.Lock()
	w.sandboxes[s.id] = s
	w.mu.Unlock()

	var half, whole []*container
	for _, rec := range st.containers {
		c := w.adoptContainer(s, rec)
		if c.half() {
			half = append(half, c)
		} else {
			whole = append(whole, c)
		}
	}
	if vm != nil {
		s.adoptVM(vm)
		w.tasks.Go(s.network.follow)
	} else {
		w.tasks.Go(s.network.detach)
	}
	for _, c := range half {
		log.Info("finishing a create that was cut short: it is undone", "container", c.rec.Ref.Id)
		c.undoHalf(ctx)
	}
	for _, c := range whole {
		c.resume()
	}
	s.settle(whole)
	s.endUnused(ctx)
	log.Info("sandbox taken back", "containers", len(whole), "vm_alive", vm != nil)
	return nil
}

// endUnused ends a VM in which no container lives: the last one's end was
// recorded, and the worker died before it could end the VM.
func (s *sandbox) endUnused(ctx context.Context) {
	s.mu.Lock()
	used := len(s.members) > 0
	s.mu.Unlock()
	if used || !s.alive() {
		return
	}
	if err := s.kill(ctx, "its last container ended"); err != nil {
		s.w.log.Error("vm not ended", "sandbox", s.id, "error", err)
	}
	s.endLinks()
}

// adoptable returns the VM of a sandbox if it lives.
func (w *Worker) adoptable(ctx context.Context, id string) (hypervisor.VM, error) {
	rec, err := hypervisor.LoadRecord(w.store.sandboxDir(id))
	if err != nil {
		return nil, err
	}
	if rec.Driver != w.driver.Name() {
		return nil, fmt.Errorf("it was started by driver %s, and this worker drives %s", rec.Driver, w.driver.Name())
	}
	vm, err := w.driver.Adopt(ctx, rec)
	if err != nil {
		return nil, err
	}
	return vm, nil
}

// killRecorded ends the process of a VM that cannot be adopted.
func (w *Worker) killRecorded(ctx context.Context, id string) error {
	rec, err := hypervisor.LoadRecord(w.store.sandboxDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever launched
	}
	if err != nil {
		return err
	}
	if rec.PID == 0 {
		return nil
	}
	process, err := openProcess(rec.PID, rec.StartTime)
	if errors.Is(err, hypervisor.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer process.close()
	return endProcess(ctx, process, 0)
}

// discard removes a sandbox whose records name no container: it was begun and
// no more, its last removal was cut short, or its records are damaged. What does
// not go keeps its directory for the next start.
func (w *Worker) discard(ctx context.Context, id string) {
	err := w.killRecorded(ctx, id)
	files, globErr := filepath.Glob(filepath.Join(w.store.sandboxDir(id), cgroupPrefix+"*.json"))
	err = errors.Join(err, globErr)
	for _, f := range files {
		cg, loadErr := hostcgroup.Load(f)
		if loadErr == nil {
			loadErr = cg.Destroy(ctx)
		}
		err = errors.Join(err, loadErr)
	}
	if err == nil {
		err = w.store.removeSandbox(ctx, id)
	}
	if err != nil {
		w.log.Error("empty sandbox not removed", "sandbox", id, "error", err)
	}
}

// settleTime bounds the question to a guest what became of its containers. The
// commands that would change them wait for the answer.
const settleTime = 5 * time.Second

// settle asks the guest what became of commands that a dead worker had given and
// not recorded, and records it. Commands to the containers wait meanwhile.
func (s *sandbox) settle(containers []*container) {
	if !s.alive() {
		return
	}
	asked := containers[:0:0]
	for _, c := range containers {
		if !live(c.status()) {
			continue // its relay is dead
		}
		select {
		case c.op <- struct{}{}:
			asked = append(asked, c)
		default: // it is being removed: no command is served yet
		}
	}
	if len(asked) == 0 {
		return
	}
	s.w.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(s.w.context(), settleTime)
		defer cancel()
		reply, err := s.agentStatus(ctx)
		if err != nil {
			s.w.log.Warn("the guest does not say what became of its containers", "sandbox", s.id, "error", err)
		}
		for _, c := range asked {
			for _, info := range reply.GetContainers() {
				if info.Container == c.key {
					c.settle(ctx, info.Status)
				}
			}
			c.unlock()
		}
	})
}
