// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package fake is a hypervisor without virtual machines, for tests and for trying
// vm-worker alone: its guests are goroutines that speak the real guest link, the
// real bus and the real standard-stream protocol, and run scripts instead of
// processes.
//
// It imports bus, proto and vm-worker/hypervisor. The invariant to remember: only
// the machine is false. What a worker meets on the link is what an agent would
// say, so a saga that passes here fails in a VM only for the VM's reasons.
package fake

import (
	"context"
	"fmt"
	"maps"
	"os"
	"sync"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	"bulkhead/vm-worker/hypervisor"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
)

// Name is what records call this driver.
const Name = "fake"

// Options configure the driver.
type Options struct {
	// Script runs the containers' processes; nil means Shell.
	Script Script
	// StartError, AttachError and DiskError, when set, may fail these steps.
	StartError  func(hypervisor.Spec) error
	AttachError func(relPath string) error
	DiskError   func(hypervisor.Disk) error
	// NICError, when set, may fail the plugging in of a network card.
	NICError func(id string) error
	// NetworkError, when set, may make a guest refuse its network.
	NetworkError func(*agentv1.NetworkRequest) error
	// UpdateError, when set, may make a guest refuse the limits it is given.
	UpdateError func(resources string) error
	// Mirrored, when set, is told of every look at the host's mounts.
	Mirrored func(hypervisor.Followed)
	// ResizeError, when set, may fail a change of a VM's size.
	ResizeError func(to hypervisor.Size) error
	// RehearsalError, when set, may make guests fail that are asked to rehearse.
	RehearsalError func() error
	// Mute makes guests that never open their link.
	Mute bool
	Log  hclog.Logger
}

// Driver makes fake VMs. They end with the process that made them; a VM can be
// adopted from the driver that started it, and by a process that it outlived
// it is found gone.
type Driver struct {
	options Options

	mu  sync.Mutex
	vms map[string]*vm // guarded by mu: the living, by id
}

var _ hypervisor.Driver = (*Driver)(nil)

// New returns a driver without VMs.
func New(o Options) *Driver {
	if o.Script == nil {
		o.Script = Shell
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return &Driver{options: o, vms: map[string]*vm{}}
}

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return Name }

// Start implements hypervisor.Driver. Neither kernel nor image are looked at.
func (d *Driver) Start(ctx context.Context, s hypervisor.Spec) (hypervisor.VM, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("starting fake vm %s: %w", s.ID, err)
	}
	if d.options.StartError != nil {
		if err := d.options.StartError(s); err != nil {
			return nil, fmt.Errorf("starting fake vm %s: %w", s.ID, err)
		}
	}
	v, err := newVM(d, s)
	if err != nil {
		return nil, fmt.Errorf("starting fake vm %s: %w", s.ID, err)
	}
	d.mu.Lock()
	d.vms[s.ID] = v
	d.mu.Unlock()
	return v, nil
}

// Adopt implements hypervisor.Driver.
func (d *Driver) Adopt(_ context.Context, rec hypervisor.Record) (hypervisor.VM, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.vms[rec.ID]
	if v == nil || v.rec.Process != rec.Process {
		return nil, fmt.Errorf("adopting fake vm %s: %w", rec.ID, hypervisor.ErrGone)
	}
	return v, nil
}

// vm is a living VM; nil when there is none of this id.
func (d *Driver) vm(id string) *vm {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vms[id]
}

// Attached lists what was attached to a living VM's share: path to whether it
// is read-only.
func (d *Driver) Attached(id string) map[string]bool {
	v := d.vm(id)
	if v == nil {
		return nil
	}
	return v.attachedPaths()
}

// KillForMemory makes a living guest tell that its kernel has killed processes of
// a container, so many so far.
func (d *Driver) KillForMemory(id, container string, kills uint64) {
	v := d.vm(id)
	if v != nil {
		v.guest.outOfMemory(container, kills)
	}
}

// Processors is how many a living guest was last told to run on.
func (d *Driver) Processors(id string) uint32 {
	v := d.vm(id)
	if v == nil {
		return 0
	}
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	return v.guest.vcpus
}

// Memory is what a living guest was last told of its memory.
func (d *Driver) Memory(id string) *agentv1.MemoryRequest {
	v := d.vm(id)
	if v == nil {
		return nil
	}
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	return v.guest.memory
}

// WantMemory has a living guest say how much memory its containers need.
func (d *Driver) WantMemory(id string, bytes uint64) error {
	v := d.vm(id)
	if v == nil {
		return fmt.Errorf("there is no fake vm %s", id)
	}
	v.guest.mu.Lock()
	nc := v.guest.nc
	v.guest.wish++
	number := v.guest.wish
	v.guest.mu.Unlock()
	return bus.PublishAgentEvent(nc, id, "memory", &agentv1.MemoryWanted{Bytes: bytes, Number: number})
}

// RepeatWish has a living guest say once more what it wanted by the wish with this number, counted from 1.
func (d *Driver) RepeatWish(id string, bytes, number uint64) error {
	v := d.vm(id)
	if v == nil {
		return fmt.Errorf("there is no fake vm %s", id)
	}
	v.guest.mu.Lock()
	nc := v.guest.nc
	v.guest.mu.Unlock()
	return bus.PublishAgentEvent(nc, id, "memory", &agentv1.MemoryWanted{Bytes: bytes, Number: number})
}

// Limits are the resources that a living guest was last told of a container, by
// its key; empty before the first update.
func (d *Driver) Limits(id, container string) string {
	v := d.vm(id)
	if v == nil {
		return ""
	}
	c, err := v.guest.find(container)
	if err != nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resources
}

// Disks lists what was plugged into a living VM: id to whether it is read-only.
func (d *Driver) Disks(id string) map[string]bool {
	v := d.vm(id)
	if v == nil {
		return nil
	}
	return v.diskIDs()
}

// NICs lists the network cards of a living VM: id to MAC address.
func (d *Driver) NICs(id string) map[string]string {
	v := d.vm(id)
	if v == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.nics)
}

// Network is what a living guest was last told of its network; nil before.
func (d *Driver) Network(id string) *agentv1.NetworkRequest {
	v := d.vm(id)
	if v == nil {
		return nil
	}
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	return proto.CloneOf(v.guest.network)
}

func (d *Driver) forget(v *vm) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.vms[v.rec.ID] == v {
		delete(d.vms, v.rec.ID)
	}
}

// holder is the process that stands for a VM: it ends when it is killed or when
// this process, holding the other end of its input, does.
func holder() (*os.Process, *os.File, error) {
	in, out, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer in.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		out.Close()
		return nil, nil, err
	}
	defer null.Close()
	p, err := os.StartProcess("/bin/cat", []string{"fake-vm"}, &os.ProcAttr{Files: []*os.File{in, null, null}})
	if err != nil {
		out.Close()
		return nil, nil, err
	}
	return p, out, nil
}
