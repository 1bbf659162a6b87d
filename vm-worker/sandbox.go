// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

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

	mu          sync.Mutex // guards all below
	rec         *vmv1.Sandbox
	vm          hypervisor.VM // nil until started
	kernel      string        // what the agent called its kernel
	nextChannel uint32
	members     map[string]*container // live containers, by key
	sessions    []time.Time           // when the guest's recent bus connections began
}

func (w *Worker) newSandbox(rec *vmv1.Sandbox) *sandbox {
	s := &sandbox{
		w: w, id: rec.Id, rec: rec,
		ready:       make(chan struct{}),
		members:     map[string]*container{},
		nextChannel: 1,
		stopLinks:   func() {},
	}
	s.router = router.New(router.Config{
		Log:    w.log.Named("router").With("sandbox", rec.Id),
		OnExit: s.processExited,
	})
	return s
}

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

// update changes the record and writes it.
func (s *sandbox) update(ctx context.Context, change func(*vmv1.Sandbox)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.rec)
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
	rec := s.rec
	rec.State = "starting"
	rec.Hypervisor = w.driver.Name()
	rec.Accelerator, rec.AcceleratorReason = string(accel), reason
	rec.Vcpus, rec.MemoryBytes = p.vcpus, p.memory
	if err := s.update(ctx, func(*vmv1.Sandbox) {}); err != nil {
		return err
	}
	w.event(ctx, "sandbox", s.id, "starting", map[string]string{"accelerator": string(accel), "reason": reason})

	started := time.Now()
	vm, err := w.driver.Start(ctx, hypervisor.Spec{
		ID: s.id, Dir: w.store.sandboxDir(s.id),
		Kernel: w.cfg.Kernel, Image: w.cfg.Image,
		VCPUs: p.vcpus, MemoryBytes: p.memory,
		Accelerator: accel, AcceleratorReason: reason,
		CgroupProcs: cgroupProcs,
		OOMScoreAdj: p.spec.Process.OOMScoreAdj,
	})
	if err != nil {
		return err
	}
	undo.did("start vm "+s.id, func(ctx context.Context) error { return vm.Kill(ctx) })
	s.phase("vm_spawn", started)
	s.adoptVM(vm)
	undo.did("serve the guest link", func(context.Context) error { s.endLinks(); return nil })

	if err := s.awaitReady(ctx); err != nil {
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
	w.event(ctx, "sandbox", s.id, "running", map[string]string{"kernel": rec.Kernel, "pid": itoa(rec.Pid)})
	return nil
}

// adoptVM takes a running VM into the sandbox and begins to serve its guest.
func (s *sandbox) adoptVM(vm hypervisor.VM) {
	hr := vm.Record()
	s.mu.Lock()
	s.vm = vm
	s.rec.Pid, s.rec.PidStartTime = int32(hr.PID), hr.StartTime
	if s.rec.Created == nil {
		s.rec.Created = timestamppb.Now()
	}
	s.mu.Unlock()
	s.serveLinks(vm)
	s.w.tasks.Go(func() { s.watchVM(vm) })
}

// awaitReady waits for the agent's first word, for the VM's death or for ctx.
func (s *sandbox) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.w.cfg.BootTimeout.Duration,
		fmt.Errorf("nothing heard for %s, which [vm] boot_timeout sets", s.w.cfg.BootTimeout))
	defer cancel()
	select {
	case <-s.ready:
		return nil
	case <-s.vm.Done():
		return fmt.Errorf("the VM ended before its agent was ready: %s", s.vm.ExitReason())
	case <-ctx.Done():
		// A daemon that ends while a guest boots must say that, not "timeout".
		return fmt.Errorf("the agent was not ready in time: %w; last words of the guest's console: %s",
			context.Cause(ctx), s.vm.ConsoleTail(consoleWords))
	}
}

// consoleWords is how much of the guest's console an error carries.
const consoleWords = 2048

// qemuPidfd is a descriptor of the VM's process, for relays to hold.
func (s *sandbox) qemuPidfd() (*os.File, error) {
	s.mu.Lock()
	vm := s.vm
	s.mu.Unlock()
	if vm == nil {
		return nil, fmt.Errorf("sandbox %s has no VM", s.id)
	}
	return vm.Pidfd()
}

// watchVM waits for the end of the VM and tells everyone who depends on it.
func (s *sandbox) watchVM(vm hypervisor.VM) {
	select {
	case <-vm.Done():
	case <-s.w.stopping:
		return // the VM lives on; the next worker adopts it
	}
	reason := vm.ExitReason()
	ctx := context.Background()
	s.endLinks()
	s.mu.Lock()
	s.rec.State = "stopped"
	if s.rec.EndReason == "" {
		s.rec.EndReason = reason
	}
	reason = s.rec.EndReason
	rec := proto.CloneOf(s.rec)
	s.mu.Unlock()
	s.router.Gone(exitVMGone, reason)
	if _, err := os.Stat(s.w.store.sandboxDir(s.id)); err == nil {
		if err := s.w.store.saveSandbox(ctx, rec); err != nil {
			s.w.log.Warn("sandbox record not written", "sandbox", s.id, "error", err)
		}
	}
	s.w.event(ctx, "sandbox", s.id, "stopped", map[string]string{"reason": reason})
}

// exitVMGone is the exit code of a process whose VM is dead: 128 + SIGKILL, as
// for a process that was killed.
const exitVMGone = 137

// kill ends the VM, keeping why in the record.
func (s *sandbox) kill(ctx context.Context, reason string) error {
	s.mu.Lock()
	vm := s.vm
	if s.rec.EndReason == "" {
		s.rec.EndReason = reason
	}
	s.mu.Unlock()
	if vm == nil {
		return nil
	}
	return vm.Kill(ctx)
}

// alive tells whether the VM runs.
func (s *sandbox) alive() bool {
	s.mu.Lock()
	vm := s.vm
	s.mu.Unlock()
	if vm == nil {
		return false
	}
	select {
	case <-vm.Done():
		return false
	default:
		return true
	}
}

// release lets go of a VM that lives on.
func (s *sandbox) release() {
	s.endLinks()
	s.router.Close()
	s.mu.Lock()
	vm := s.vm
	s.mu.Unlock()
	if vm != nil {
		vm.Release()
	}
}
