// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	netv1 "bulkhead/proto/net/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/router"
)

// sandbox is a virtual machine and what the worker holds of it.
type sandbox struct {
	w      *Worker
	id     string
	router *router.Router

	// stopLinks ends the goroutines that serve the guest link; links waits for them.
	stopLinks context.CancelFunc
	links     sync.WaitGroup
	ready     chan struct{} // closed at the agent's first "ready"
	launched  chan struct{} // closed when there is a VM
	over      chan struct{} // closed when the end of the VM is recorded
	sizing    chan struct{} // a mutex of the VM's size that a context can give up on: holds one token

	// life ends with the VM; died ends it. Requests to its agent end with it.
	life context.Context
	died context.CancelFunc

	network *network

	sharing sync.Mutex // held while a share is plugged in

	mu          sync.Mutex // guards all below
	rec         *vmv1.Sandbox
	vm          hypervisor.VM // nil until started
	kernel      string        // what the agent called its kernel
	nextChannel uint32
	members     map[string]*container // containers that need the VM, by key
	closing     bool                  // nobody may join any more: the VM is being ended
	removed     bool                  // records are no longer written
	sessions    []time.Time           // when the guest's recent sessions, on both channels, began
}

func (w *Worker) newSandbox(rec *vmv1.Sandbox) *sandbox {
	s := &sandbox{
		w: w, id: rec.Id, rec: rec,
		ready:       make(chan struct{}),
		launched:    make(chan struct{}),
		over:        make(chan struct{}),
		sizing:      make(chan struct{}, 1),
		members:     map[string]*container{},
		nextChannel: firstChannel,
		stopLinks:   func() {},
	}
	s.network = newNetwork(s)
	s.life, s.died = context.WithCancel(context.Background())
	s.router = router.New(router.Config{
		Log:    w.log.Named("router").With("sandbox", rec.Id),
		OnExit: s.processExited,
	})
	return s
}

// firstChannel is that of the container for which the VM was started.
const firstChannel = 1

// channel returns a stdio channel number never used before in this VM.
func (s *sandbox) channel() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextChannel++
	return s.nextChannel - 1
}

// record returns a copy of the sandbox's record.
func (s *sandbox) record() *vmv1.Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	return proto.CloneOf(s.rec)
}

// update changes the record and writes it, unless the sandbox is being removed:
// what is gone must not come back.
func (s *sandbox) update(ctx context.Context, change func(*vmv1.Sandbox)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.rec)
	if s.removed {
		return nil
	}
	return s.w.store.saveSandbox(ctx, s.rec)
}

// phase records how long a phase of the start took. The file is written with
// the next change of the record.
func (s *sandbox) phase(name string, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec.Phases == nil {
		s.rec.Phases = map[string]*durationpb.Duration{}
	}
	s.rec.Phases[name] = durationpb.New(time.Since(since))
}

// boot starts the VM and returns when its agent has its identity.
func (s *sandbox) boot(ctx context.Context, p *plan, cgroupProcs []string, undo *saga) error {
	w := s.w
	accel, reason, err := w.accelerator()
	if err != nil {
		return err
	}
	err = s.update(ctx, func(rec *vmv1.Sandbox) {
		rec.State = "starting"
		rec.Hypervisor = w.driver.Name()
		rec.Accelerator, rec.AcceleratorReason = string(accel), reason
		rec.Vcpus, rec.MemoryBytes = p.size.VCPUs, p.size.MemoryBytes
	})
	if err != nil {
		return err
	}
	w.event(ctx, "sandbox", s.id, "starting", map[string]string{"accelerator": string(accel), "reason": reason})

	started := time.Now()
	vm, err := w.driver.Start(ctx, hypervisor.Spec{
		ID: s.id, Dir: w.store.sandboxDir(s.id),
		Kernel: w.cfg.Kernel, Image: w.cfg.Image,
		VCPUs: p.size.VCPUs, MemoryBytes: p.size.MemoryBytes, Max: p.room,
		Accelerator: accel, AcceleratorReason: reason,
		CgroupProcs: cgroupProcs,
		OOMScoreAdj: p.oomScoreAdj,
		Mergeable:   s.record().Mergeable,
		KernelArgs:  s.kernelArgs(),
	})
	if err != nil {
		return err
	}
	s.phase("vm_spawn", started)
	s.adoptVM(vm)
	undo.did("start vm "+s.id, func(ctx context.Context) error {
		defer s.endLinks()
		return s.kill(ctx, "the creation of its container was undone")
	})

	if err := s.awaitReady(ctx, vm); err != nil {
		return err
	}
	s.phase("agent_ready", started)
	if err := s.configure(ctx, p); err != nil {
		return err
	}
	s.phase("vm_boot", started)
	err = s.update(ctx, func(rec *vmv1.Sandbox) {
		rec.State = "running"
		rec.Kernel = s.kernel
	})
	if err != nil {
		return err
	}
	rec := s.record()
	w.event(ctx, "sandbox", s.id, "running", map[string]string{"kernel": rec.Kernel, "pid": itoa(rec.Pid)})
	return nil
}

// bootWithNetwork starts the VM and wires it to the network of its first container meanwhile.
func (s *sandbox) bootWithNetwork(ctx context.Context, p *plan, ns *netv1.Namespace, cgroupProcs []string, undo *saga) error {
	if err := s.keepNetwork(ctx, p, ns); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	network := s.network.begin(ctx, stop)
	undo.did("attach the network", network.undo)
	err := s.boot(ctx, p, cgroupProcs, undo)
	if err != nil {
		stop(err)
	}
	if netErr := network.wait(); netErr != nil && (err == nil || errors.Is(context.Cause(ctx), netErr)) {
		return netErr // what went wrong first
	}
	if err != nil {
		return err
	}
	began := time.Now()
	if err := s.network.sync(ctx); err != nil {
		return err
	}
	s.phase("network", began)
	s.w.tasks.Go(s.network.follow)
	return nil
}

// adoptVM takes a running VM into the sandbox and begins to serve its guest.
func (s *sandbox) adoptVM(vm hypervisor.VM) {
	hr := vm.Record()
	s.mu.Lock()
	s.vm = vm
	s.rec.Pid, s.rec.PidStartTime = int32(hr.PID), hr.StartTime
	s.rec.MemoryBytes = hr.MemoryBytes // a worker may have died between a change and its record
	if s.rec.Created == nil {
		s.rec.Created = timestamppb.Now()
	}
	s.mu.Unlock()
	close(s.launched)
	s.serveLinks(vm)
	s.w.tasks.Go(func() { s.watchVM(vm) })
}

// awaitReady waits for the agent's first word, for the VM's death or for ctx.
func (s *sandbox) awaitReady(ctx context.Context, vm hypervisor.VM) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.w.cfg.BootTimeout.Duration,
		fmt.Errorf("nothing heard for %s, which [vm] boot_timeout sets", s.w.cfg.BootTimeout))
	defer cancel()
	select {
	case <-s.ready:
		return nil
	case <-vm.Done():
		return fmt.Errorf("the VM ended before its agent was ready: %s", vm.ExitReason())
	case <-ctx.Done():
		// A daemon that ends while a guest boots must say that, not "timeout".
		return fmt.Errorf("the agent was not ready in time: %w; last words of the guest's console: %s",
			context.Cause(ctx), vm.ConsoleTail(consoleWords))
	}
}

// consoleWords is how much of the guest's console an error carries.
const consoleWords = 2048
