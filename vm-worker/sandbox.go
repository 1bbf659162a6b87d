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
	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/jail"
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
	launched  chan struct{} // closed when there is a VM
	offered   chan struct{} // closed when something listens for the guest on the host
	over      chan struct{} // closed when the end of the VM is recorded
	sizing    chan struct{} // a mutex of the VM's size that a context can give up on: holds one token

	network *network

	sharing sync.Mutex // held while a share is plugged in

	used   uint64    // memory of the VM's own; guarded by budget.mu
	usedAt time.Time // when that was read; guarded by budget.mu

	mu       sync.Mutex // guards all below
	rec      *vmv1.Sandbox
	vm       hypervisor.VM   // nil until started
	life     context.Context // ends with the VM, and requests to its agent with it
	ready    chan struct{}   // closed at the first "ready" of the VM's agent
	trial    *trial          // nil: the VM's end is the sandbox's, as that of a pool's own VM
	kernel   string          // what the agent called its kernel
	channels channelNumbers
	members  map[string]*container // containers that need the VM, by key
	closing  bool                  // nobody may join any more: the VM is being ended
	removed  bool                  // records are no longer written
	pooled   bool                  // no container has it yet
	shortage shortage
	sessions []time.Time // when the guest's recent sessions, on both channels, began
}

func (w *Worker) newSandbox(rec *vmv1.Sandbox) *sandbox {
	s := &sandbox{
		w: w, id: rec.Id, rec: rec,
		ready:     make(chan struct{}),
		life:      context.Background(),
		launched:  make(chan struct{}),
		offered:   make(chan struct{}),
		over:      make(chan struct{}),
		sizing:    make(chan struct{}, 1),
		members:   map[string]*container{},
		channels:  channelNumbers{next: firstChannel},
		stopLinks: func() {},
	}
	s.network = newNetwork(s)
	s.router = router.New(router.Config{
		Log:    w.log.Named("router").With("sandbox", rec.Id),
		OnExit: s.processExited,
	})
	return s
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

// come starts the VM, or takes it as it comes from the pool, and returns when its
// agent has its identity. The VM stays on trial.
func (s *sandbox) come(ctx context.Context, p *plan, cg *hostcgroup.Cgroup) error {
	started := time.Now()
	settle := func(ctx context.Context) error { return s.settleIn(ctx, p, cg) }
	if err := s.obtain(ctx, p, cg.ProcsPaths(), settle); err != nil {
		return err
	}
	s.phase("vm_boot", started)
	err := s.update(ctx, func(rec *vmv1.Sandbox) {
		rec.State = "running"
		rec.Kernel = s.kernel
	})
	if err != nil {
		return err
	}
	rec := s.record()
	s.w.event(ctx, "sandbox", s.id, "running", map[string]string{"kernel": rec.Kernel, "pid": itoa(rec.Pid)})
	return nil
}

// bootWithNetwork starts the VM and attaches the network of its first container meanwhile.
func (s *sandbox) bootWithNetwork(ctx context.Context, p *plan, ns *netv1.Namespace, cg *hostcgroup.Cgroup, undo *saga) error {
	if err := s.keepNetwork(ctx, p, ns); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	network := s.network.begin(ctx, stop)
	undo.did("attach the network", network.undo)
	s.undoStart(undo)
	err := s.come(ctx, p, cg)
	if err != nil {
		stop(err)
	}
	if netErr := network.wait(); netErr != nil && (err == nil || errors.Is(context.Cause(ctx), netErr)) {
		return netErr // what went wrong first
	}
	return err
}

// start starts a VM from its template, or boots it, and waits for its agent.
func (s *sandbox) start(ctx context.Context, p *plan, cgroupProcs []string) error {
	w := s.w
	accel, reason, err := w.accelerator()
	if err != nil {
		return err
	}
	spec := hypervisor.Spec{
		Kernel: w.cfg.Kernel, Image: w.cfg.Image,
		VCPUs: p.size.VCPUs, MemoryBytes: w.baseMemory(), Max: p.room,
		Accelerator: accel, AcceleratorReason: reason,
		KernelArgs: kernelArgs(s.record().Selinux),
	}
	came := p.came()
	err = s.update(ctx, func(rec *vmv1.Sandbox) {
		rec.State = "starting"
		rec.Hypervisor = w.driver.Name()
		rec.Accelerator, rec.AcceleratorReason = string(accel), reason
		rec.Vcpus, rec.MemoryBytes = p.size.VCPUs, w.baseMemory()
		came(rec)
	})
	if err != nil {
		return err
	}
	rec := s.record()
	w.event(ctx, "sandbox", s.id, "starting", map[string]string{
		"accelerator": string(accel), "reason": reason, "origin": rec.Origin, "origin_reason": rec.OriginReason,
	})
	w.log.Debug("vm starts", "sandbox", s.id, "origin", rec.Origin, "reason", rec.OriginReason)

	if _, err := s.awaitMemory(ctx, func() error { return w.budget.claim(s, w.baseMemory()) }); err != nil {
		return err
	}
	defer w.budget.settle(s)
	started := time.Now()
	vm, err := s.launch(ctx, p, spec, cgroupProcs)
	if err != nil {
		return err
	}
	s.phase("vm_spawn", started)
	s.beginTrial()
	s.adoptVM(vm)
	if err := s.awaitReady(ctx, vm, s.patience(ctx, p)); err != nil {
		return fault{err}
	}
	return nil
}

// launch starts the hypervisor: from the plan's template, or, without one, as spec says.
func (s *sandbox) launch(ctx context.Context, p *plan, spec hypervisor.Spec, cgroupProcs []string) (hypervisor.VM, error) {
	w := s.w
	own := func(spec hypervisor.Spec) hypervisor.Spec {
		spec.ID, spec.Dir = s.id, w.store.sandboxDir(s.id)
		spec.CgroupProcs, spec.OOMScoreAdj, spec.Mergeable = cgroupProcs, p.oomScoreAdj, s.record().Mergeable
		return spec
	}
	if p.from == nil {
		return w.driver.Start(ctx, own(spec))
	}
	clone, err := w.clone(p)
	if err != nil {
		return nil, err
	}
	vm, err := w.driver.Start(ctx, own(clone))
	if err != nil {
		return nil, fault{err}
	}
	w.stock.templates.cloned(p.from)
	return vm, nil
}

// settleIn makes a VM of the pool that of its first container: it moves into its cgroup, and is
// from then on the first to die with it.
func (s *sandbox) settleIn(ctx context.Context, p *plan, cg *hostcgroup.Cgroup) error {
	rec := s.record()
	err := s.update(ctx, func(rec *vmv1.Sandbox) { rec.State = "starting" })
	if err != nil {
		return err
	}
	s.w.event(ctx, "sandbox", s.id, "starting", map[string]string{
		"accelerator": rec.Accelerator, "reason": rec.AcceleratorReason, "origin": rec.Origin,
	})
	pool, err := s.w.stock.cgroups.get(making)
	if err != nil {
		return err
	}
	if err := cg.EnterMachine(int(rec.Pid), pool); err != nil {
		err = fmt.Errorf("move a VM of the pool into the cgroup of its container: %w", err)
		if processGone(s.machine()) {
			return fault{err}
		}
		return err
	}
	pid := itoa(rec.Pid)
	if err := jail.Place(pid, pid, nil, p.oomScoreAdj); err != nil {
		return fmt.Errorf("place a VM of the pool: %w", err)
	}
	return nil
}

func (s *sandbox) undoStart(undo *saga) {
	undo.did("start vm "+s.id, func(ctx context.Context) error {
		defer s.endLinks()
		return s.kill(ctx, "the creation of its container was undone")
	})
}

// grow gives a VM that began as its template the processors that the plan needs beyond that. Memory comes
// when the containers need it, to VMs of any origin.
func (s *sandbox) grow(ctx context.Context, p *plan) error {
	vm := s.machine()
	if has := vm.Record(); p.from != nil && p.size.VCPUs > has.VCPUs {
		began := time.Now()
		ctx, cancel := context.WithTimeout(ctx, resizeTime)
		defer cancel()
		if err := vm.Resize(ctx, hypervisor.Size{VCPUs: p.size.VCPUs, MemoryBytes: has.MemoryBytes}); err != nil {
			return fault{fmt.Errorf("give the VM what its container needs: %w", err)}
		}
		s.phase("vm_grow", began)
	}
	return s.update(ctx, func(rec *vmv1.Sandbox) {
		rec.Vcpus, rec.MemoryBytes, rec.MemoryLimitBytes = p.size.VCPUs, vm.Record().MemoryBytes, p.size.MemoryBytes
	})
}

// adoptVM takes a running VM into the sandbox and begins to serve its guest.
func (s *sandbox) adoptVM(vm hypervisor.VM) {
	hr := vm.Record()
	life, died := context.WithCancel(context.Background())
	s.mu.Lock()
	s.vm, s.life = vm, life
	s.rec.Pid, s.rec.PidStartTime = int32(hr.PID), hr.StartTime
	s.rec.MemoryBytes = hr.MemoryBytes // a worker may have died between a change and its record
	if s.rec.Created == nil {
		s.rec.Created = timestamppb.Now()
	}
	s.mu.Unlock()
	if !closed(s.launched) {
		close(s.launched)
	}
	s.serveLinks(vm)
	s.w.tasks.Go(func() { s.watchVM(vm, died) })
}

// awaitReady waits for the agent's first word, for the VM's death or for ctx, no longer than limit.
func (s *sandbox) awaitReady(ctx context.Context, vm hypervisor.VM, limit time.Duration) error {
	set := ""
	if limit == s.w.cfg.BootTimeout.Duration {
		set = ", which [vm] boot_timeout sets"
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("nothing heard for %s%s", limit, set))
	defer cancel()
	select {
	case <-s.answers():
		return nil
	case <-vm.Done():
		return fmt.Errorf("the VM ended before its agent was ready: %s", vm.ExitReason())
	case <-ctx.Done():
		// A daemon that ends while a guest boots must say that, not "timeout".
		words := vm.ConsoleTail(consoleWords)
		if words == "" {
			words = "none"
		}
		return fmt.Errorf("the agent was not ready in time: %w; last words of the guest's console: %s", context.Cause(ctx), words)
	}
}

// answers is closed when the agent of the VM that there is now has been ready.
func (s *sandbox) answers() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// lifetime ends with the VM that there is now.
func (s *sandbox) lifetime() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

// consoleWords is how much of the guest's console an error carries.
const consoleWords = 2048
