// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	"bulkhead/bus/config"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/share"
)

// FilesOfVM is how many files the worker holds open of each VM with one container (docs/performance.md).
const FilesOfVM = 11

// Deps is what the vm service needs to run.
type Deps struct {
	Conn    *bus.Conn
	RunDir  string
	Config  config.VM
	Driver  hypervisor.Driver
	Log     hclog.Logger
	Version string
	// PressureFile is where the kernel tells how long processes have waited for memory: of the
	// host, when empty, or of a cgroup (memory.pressure).
	PressureFile string
	// TemplateRetry is the first pause after a template that is no good; 0: five minutes.
	TemplateRetry time.Duration
	// Serving, when set, is called once the service answers.
	Serving func()
}

// Worker is the vm service.
//
// Lock order: container.op, then budget.mu, then Worker.mu, then container.mu, then sandbox.mu.
// flights.mu is a leaf.
type Worker struct {
	conn     *bus.Conn
	host     string
	runDir   string
	cfg      config.VM
	driver   hypervisor.Driver
	log      hclog.Logger
	store    *store
	ops      *bus.Operations
	handover *share.Server
	stock    *stock
	pressure string // Deps.PressureFile
	accel    hypervisor.Choice

	templateRetry time.Duration // Deps.TemplateRetry

	stopHandover context.CancelFunc

	life     context.Context // ends with the worker; VMs live on
	stopping <-chan struct{} // its Done
	endLife  context.CancelFunc
	tasks    sync.WaitGroup // watchers and reconciliation
	flights  flights
	budget   *budget

	mu         sync.Mutex // guards the maps
	containers map[string]*container
	sandboxes  map[string]*sandbox
}

// drainTime is how long a stopping worker waits for commands under way.
const drainTime = 30 * time.Second

// Run serves until ctx ends. The VMs it leaves behind are found again by the
// next Run on the same run directory.
func Run(ctx context.Context, d Deps) error {
	unlock, err := lockDir(filepath.Join(d.RunDir, "vm"))
	if err != nil {
		return err
	}
	defer unlock()
	w, err := newWorker(ctx, d)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.reconcile(ctx); err != nil {
		return err
	}
	w.tasks.Go(w.watchHostMounts)
	w.tasks.Go(w.followNetworks)
	w.stock.begin()
	svc, err := w.serve(ctx, d.Version)
	if err != nil {
		return err
	}
	svc.Announced(ctx)
	if d.Serving != nil {
		d.Serving()
	}
	return svc.ServeUntil(ctx, drainTime)
}

func newWorker(ctx context.Context, d Deps) (*Worker, error) {
	containers, err := bus.OpenBucket[*vmv1.Container](ctx, d.Conn, bus.BucketContainers)
	if err != nil {
		return nil, err
	}
	sandboxes, err := bus.OpenBucket[*vmv1.Sandbox](ctx, d.Conn, bus.BucketSandboxes)
	if err != nil {
		return nil, err
	}
	ops, err := bus.OpenOperations(ctx, d.Conn)
	if err != nil {
		return nil, err
	}
	handover, err := share.Listen(filepath.Join(d.RunDir, "handover.sock"), d.Log.Named("handover"))
	if err != nil {
		return nil, err
	}
	w := &Worker{
		conn: d.Conn, host: d.Conn.Host(), runDir: d.RunDir, cfg: d.Config, driver: d.Driver, log: d.Log,
		store: &store{
			dir:        filepath.Join(d.RunDir, "vm"),
			containers: containers, sandboxes: sandboxes, log: d.Log,
			behind: make(chan struct{}, 1),
		},
		ops:      ops,
		pressure: cmp.Or(d.PressureFile, hostPressure), templateRetry: d.TemplateRetry,
		accel:      hypervisor.Choice{Mode: hypervisor.Accelerator(d.Config.Accelerator)},
		handover:   handover,
		containers: map[string]*container{},
		sandboxes:  map[string]*sandbox{},
	}
	w.budget = newBudget(w)
	w.stock = w.newStock()
	w.life, w.endLife = context.WithCancel(context.WithoutCancel(ctx))
	w.stopping = w.life.Done()
	w.tasks.Go(w.keepPublished)
	// Handovers are taken until close, which comes after the last command.
	taking, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stopHandover = stop
	w.tasks.Go(func() {
		if err := handover.Serve(taking); err != nil {
			w.log.Error("handovers are no longer taken", "error", err)
		}
	})
	return w, nil
}

// serve announces the service and its methods.
func (w *Worker) serve(ctx context.Context, version string) (*bus.Service, error) {
	svc, err := bus.NewService(ctx, w.conn, bus.ServiceConfig{
		Name: "vm", Version: version,
		Description: "containers and the virtual machines they run in",
		Detail:      w.detail,
		Log:         w.log,
	})
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		bus.Handle(svc, "locate", w.locate),
		bus.Handle(svc, "create", w.create),
		bus.Handle(svc, "start", w.start),
		bus.Handle(svc, "state", w.state),
		bus.Handle(svc, "list", w.list),
		bus.Handle(svc, "config", w.config),
		bus.Handle(svc, "kill", w.kill),
		bus.Handle(svc, "delete", w.remove),
		bus.Handle(svc, "exec", w.exec),
		bus.Handle(svc, "processes", w.processes),
		bus.Handle(svc, "update", w.update),
		bus.Handle(svc, "pause", w.pause),
		bus.Handle(svc, "resume", w.resume),
		bus.Handle(svc, "stats", w.stats),
		bus.Handle(svc, "pool", w.describePool),
	)
	if err != nil {
		return nil, errors.Join(err, svc.Stop(ctx))
	}
	return svc, nil
}

// sandboxList is a copy of the books.
func (w *Worker) sandboxList() []*sandbox {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.sandboxes))
}

// containerList is likewise.
func (w *Worker) containerList() []*container {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.containers))
}

// close lets go of everything and leaves the VMs running.
func (w *Worker) close() {
	w.endLife()
	w.stopHandover()
	w.stock.close()
	sandboxes := w.sandboxList()
	for _, c := range w.containerList() { // ends the waits of watchers
		c.releaseRelays()
	}
	for _, s := range sandboxes {
		s.release()
	}
	w.tasks.Wait()
}

// context is for work of the worker's own, which ends with it.
func (w *Worker) context() context.Context { return w.life }

// detail is the sentence "status" shows.
func (w *Worker) detail() string {
	accel, reason, err := w.accelerator()
	if err != nil {
		return err.Error()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%d containers; %d VMs of %s run; accelerator %s: %s",
		len(w.containers), w.runningLocked(), w.driver.Name(), accel, reason)
}

// runningLocked counts the VMs that run or are being started. The caller holds
// w.mu.
func (w *Worker) runningLocked() int {
	running := 0
	for _, s := range w.sandboxes {
		if !s.stopped() && !s.spare() {
			running++
		}
	}
	return running
}

// accelerator is the configured one, resolved.
func (w *Worker) accelerator() (hypervisor.Accelerator, string, error) { return w.accel.Get() }

// event tells of a lifecycle step. The record is the truth, so an event that
// cannot be told is logged and nothing more.
func (w *Worker) event(ctx context.Context, kind, id, name string, attributes map[string]string) {
	for k, v := range attributes {
		if v == "" {
			delete(attributes, k)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := bus.Publish(ctx, w.conn, &busv1.Event{Kind: kind, Id: id, Event: name, Attributes: attributes})
	if err != nil {
		w.log.Warn("event not published", "kind", kind, "id", id, "event", name, "error", err)
	}
}

// lockDir makes dir and makes sure that no other worker serves it.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of VMs: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory of VMs: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another vm-worker already serves %s; stop it, or leave \"vm\" out of one of the two", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
