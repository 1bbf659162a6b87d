// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"bulkhead/vm-worker/hypervisor"
)

// vm is a process that does nothing, and a guest in goroutines.
type vm struct {
	driver *Driver
	rec    hypervisor.Record
	guest  *guest
	events chan hypervisor.Event
	done   chan struct{}

	mu       sync.Mutex
	reason   string            // guarded by mu
	attached map[string]bool   // guarded by mu: read-only by path
	disks    map[string]bool   // guarded by mu: read-only by id
	nics     map[string]string // guarded by mu: MAC address by id
	size     hypervisor.Size   // guarded by mu
}

var _ hypervisor.VM = (*vm)(nil)

func newVM(d *Driver, s hypervisor.Spec) (_ *vm, err error) {
	v := &vm{
		driver: d, rec: hypervisor.NewRecord(Name, s),
		events: make(chan hypervisor.Event, 16), done: make(chan struct{}), attached: map[string]bool{}, disks: map[string]bool{}, nics: map[string]string{},
	}
	v.size = hypervisor.Size{VCPUs: v.rec.VCPUs, MemoryBytes: v.rec.MemoryBytes}
	if err := v.rec.Save(); err != nil {
		return nil, err
	}
	process, input, err := holder()
	if err != nil {
		return nil, fmt.Errorf("making the process that stands for it: %w", err)
	}
	defer func() {
		if err != nil {
			_ = process.Kill()
			_, _ = process.Wait()
			input.Close()
		}
	}()
	if v.rec.Process, err = hypervisor.FindProcess(process.Pid); err != nil {
		return nil, err
	}
	if err := v.rec.Save(); err != nil {
		return nil, err
	}
	if s.Launched != nil {
		if err := s.Launched(v.rec); err != nil {
			return nil, err
		}
	}
	if v.guest, err = startGuest(s, d.options, v.NICs); err != nil {
		return nil, err
	}
	go v.watch(process, input)
	return v, nil
}

// watch waits for the end of the process, however it came.
func (v *vm) watch(process *os.Process, input *os.File) {
	state, err := process.Wait()
	input.Close()
	v.guest.stop()
	v.mu.Lock()
	if v.reason == "" {
		v.reason = fmt.Sprintf("the fake vm's process ended: %v", state)
		if err != nil {
			v.reason = fmt.Sprintf("the fake vm's process was lost: %v", err)
		}
	}
	v.mu.Unlock()
	v.driver.forget(v)
	close(v.events)
	close(v.done)
}

func (v *vm) ID() string                      { return v.rec.ID }
func (v *vm) Pidfd() (*os.File, error)        { return v.rec.Pidfd() }
func (v *vm) Done() <-chan struct{}           { return v.done }
func (v *vm) Events() <-chan hypervisor.Event { return v.events }
func (v *vm) ConsoleTail(int) string          { return "" }

// Release leaves a fake VM as it is: its guest lives in this process.
func (v *vm) Release() {}

func (v *vm) DialCtl(ctx context.Context) (net.Conn, error) { return v.dial(ctx, "ctl") }
func (v *vm) DialIO(ctx context.Context) (net.Conn, error)  { return v.dial(ctx, "io") }
func (v *vm) DialNet(ctx context.Context) (net.Conn, error) { return v.dial(ctx, "net") }

func (v *vm) dial(ctx context.Context, name string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(v.rec.Dir, name+".sock"))
	if err != nil {
		return nil, fmt.Errorf("connecting to port %s of fake vm %s: %w", name, v.rec.ID, err)
	}
	return conn, nil
}

// AttachMount notes the path; a fake guest has no file system.
func (v *vm) AttachMount(ctx context.Context, _ *os.File, relPath string, _, readOnly bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.driver.options.AttachError != nil {
		if err := v.driver.options.AttachError(relPath); err != nil {
			return fmt.Errorf("attaching a mount at %q: %w", relPath, err)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, taken := v.attached[relPath]; taken {
		return fmt.Errorf("attaching a mount at %q: something is attached there already", relPath)
	}
	v.attached[relPath] = readOnly
	return nil
}

// KeepMounts keeps names: a fake guest has no file system.
func (v *vm) KeepMounts() (hypervisor.KeptMounts, error) { return keptMounts{v}, nil }

type keptMounts struct{ v *vm }

func (k keptMounts) Again(ctx context.Context, relPath string) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, attached := k.v.attachedPaths()[relPath]; !attached {
		return nil, fmt.Errorf("cloning the mount at %q: nothing is attached there", relPath)
	}
	return os.Open(os.DevNull)
}

func (keptMounts) Close() error { return nil }

// MirrorMounts only tells: the host's mounts are not in a fake guest.
func (v *vm) MirrorMounts(ctx context.Context, f hypervisor.Followed) error {
	if v.driver.options.Mirrored != nil {
		v.driver.options.Mirrored(f)
	}
	return ctx.Err()
}

func (v *vm) DetachMounts(_ context.Context, relPrefix string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	maps.DeleteFunc(v.attached, func(p string, _ bool) bool {
		return p == relPrefix || strings.HasPrefix(p, relPrefix+"/")
	})
	return nil
}

// AttachShare has nothing to do: a fake guest mounts nothing.
func (v *vm) AttachShare(ctx context.Context, _ string) error { return ctx.Err() }

// AttachDisk notes the disk; a fake guest has no devices.
func (v *vm) AttachDisk(ctx context.Context, d hypervisor.Disk) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.driver.options.DiskError != nil {
		if err := v.driver.options.DiskError(d); err != nil {
			return fmt.Errorf("attaching disk %s: %w", d.ID, err)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, taken := v.disks[d.ID]; taken {
		return fmt.Errorf("attaching disk %s: there is one with this id", d.ID)
	}
	v.disks[d.ID] = d.ReadOnly
	return nil
}

func (v *vm) DetachDisks(_ context.Context, idPrefix string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	maps.DeleteFunc(v.disks, func(id string, _ bool) bool { return strings.HasPrefix(id, idPrefix) })
	return nil
}

func (v *vm) diskIDs() map[string]bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.disks)
}

func (v *vm) attachedPaths() map[string]bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.attached)
}

func (v *vm) Record() hypervisor.Record {
	v.mu.Lock()
	defer v.mu.Unlock()
	rec := v.rec
	rec.VCPUs, rec.MemoryBytes = v.size.VCPUs, v.size.MemoryBytes
	return rec
}

// Resize notes the size; like a real machine it loses no CPU and keeps the memory
// it was started with.
func (v *vm) Resize(_ context.Context, to hypervisor.Size) error {
	if to.VCPUs > v.rec.Max.VCPUs || to.MemoryBytes > v.rec.Max.MemoryBytes {
		return fmt.Errorf("fake vm %s: %w", v.rec.ID, hypervisor.ErrNoRoom)
	}
	if v.driver.options.ResizeError != nil {
		if err := v.driver.options.ResizeError(to); err != nil {
			return fmt.Errorf("resizing fake vm %s: %w", v.rec.ID, err)
		}
	}
	v.mu.Lock()
	v.size = hypervisor.Size{VCPUs: max(v.size.VCPUs, to.VCPUs), MemoryBytes: max(v.rec.BootMemoryBytes, to.MemoryBytes)}
	v.mu.Unlock()
	return v.Record().Save()
}

func (v *vm) Pause(context.Context) error  { return nil }
func (v *vm) Resume(context.Context) error { return nil }

func (v *vm) Shutdown(ctx context.Context) error {
	return v.end(ctx, "the vm was shut down by its worker")
}
func (v *vm) Kill(ctx context.Context) error { return v.end(ctx, "the vm was killed by its worker") }

func (v *vm) end(ctx context.Context, reason string) error {
	v.mu.Lock()
	if v.reason == "" {
		v.reason = reason
	}
	v.mu.Unlock()
	if err := v.rec.KillProcess(); err != nil && !errors.Is(err, hypervisor.ErrGone) {
		return err
	}
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of fake vm %s: %w", v.rec.ID, ctx.Err())
	}
}

func (v *vm) ExitReason() string {
	select {
	case <-v.done:
	default:
		return "" // it lives, whatever was ordered
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.reason
}
