// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"bulkhead/vm-worker/hypervisor"

	"golang.org/x/sys/unix"
)

// makeTimeout bounds the making of a template, the boot of its guest included.
const makeTimeout = 2 * time.Minute

// template is a stopped VM. Both files are memory of the kernel's that has no name
// and is sealed: it lives as long as somebody holds it, and nobody, QEMU under root's capabilities
// included, can write to it, shorten it, or punch holes into it (memfd_create(2), fcntl(2) F_SEAL_WRITE).
type template struct {
	key   string
	bytes int64

	mu     sync.Mutex // guards what follows
	memory *os.File   // nil when given up
	state  *os.File
	zygote *zygote // nil: none, or it has failed
	worn   error   // why
}

// origin says where a VM's memory comes from, with the files of its own for that.
type origin struct {
	ram    ram
	memory *os.File
	state  *os.File // of a clone: what is not memory, to be read from its beginning
	// unchanged asks, when the jail has bound the files, whether they are still those that the template is made of: a
	// guest that knows from its memory what a file system holds must not go on with another one.
	unchanged func(context.Context) error

	zygote  *zygote  // of the template, if it has one: not the origin's to close
	control *os.File // of a zygote: where it gets its orders
}

func (o origin) close() {
	for _, f := range []*os.File{o.memory, o.state} {
		if f != nil {
			f.Close()
		}
	}
}

// Key implements hypervisor.Template.
func (t *template) Key() string { return t.key }

// Bytes implements hypervisor.Template.
func (t *template) Bytes() int64 { return t.bytes }

// Close implements hypervisor.Template.
func (t *template) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.memory == nil {
		return nil
	}
	err := errors.Join(t.memory.Close(), t.state.Close())
	if t.zygote != nil {
		err = errors.Join(err, t.zygote.close())
	}
	t.memory, t.state, t.zygote = nil, nil, nil
	return err
}

// Process implements hypervisor.Template.
func (t *template) Process() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.zygote == nil || !t.zygote.alive() {
		return 0
	}
	return t.zygote.process.PID
}

// Worn implements hypervisor.Template.
func (t *template) Worn() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.worn == nil && t.zygote != nil && !t.zygote.alive() {
		return errors.New("the process that forked its VMs has ended")
	}
	return t.worn
}

// wear ends the template's zygote, which did not fork.
func (t *template) wear(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.zygote != nil {
		t.worn = errors.Join(err, t.zygote.close())
	}
	t.zygote = nil
}

// open returns the files for one clone: they can be read only, and have places of their own in it.
func (t *template) open() (origin, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.memory == nil {
		return origin{}, hypervisor.ErrTemplateGone
	}
	memory, err := reopen(t.memory)
	if err != nil {
		return origin{}, err
	}
	state, err := reopen(t.state)
	if err != nil {
		memory.Close()
		return origin{}, err
	}
	return origin{ram: ramCloned, memory: memory, state: state, zygote: t.zygote}, nil
}

func reopen(f *os.File) (*os.File, error) {
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("opening a template: %w", err)
	}
	return again, nil
}

// cloned is the origin of a VM that is to be started from a template.
func (d *Driver) cloned(ctx context.Context, s hypervisor.Spec) (origin, error) {
	t, ok := s.From.(*template)
	if !ok {
		return origin{}, fmt.Errorf("template %s is not one of QEMU's", s.From.Key())
	}
	o, err := d.open(t, s)
	if err != nil {
		return origin{}, err
	}
	if err := o.unchanged(ctx); err != nil {
		o.close()
		return origin{}, err
	}
	return o, nil
}

// open is the origin of one that is started for s.
func (d *Driver) open(t *template, s hypervisor.Spec) (origin, error) {
	o, err := t.open()
	o.unchanged = func(ctx context.Context) error {
		key, err := d.TemplateKey(ctx, s)
		if err == nil && key != t.key {
			err = fmt.Errorf("what template %.12s was made of has changed: %w", t.key, hypervisor.ErrTemplateGone)
		}
		return err
	}
	return o, err
}

// MakeTemplate implements hypervisor.Templater.
func (d *Driver) MakeTemplate(ctx context.Context, s hypervisor.Spec, ready func(context.Context, hypervisor.VM) error) (hypervisor.Template, error) {
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	t, err := d.makeTemplate(ctx, s, ready)
	if err != nil {
		return nil, fmt.Errorf("making a template: %w", err)
	}
	if s.Accelerator == hypervisor.TCG && d.zygotes.find() != "" {
		// Without one, VMs start from the memory all the same.
		if t.zygote, err = d.makeZygote(ctx, s, t, ready); err != nil {
			d.log.Warn("the template has memory only: its VMs start slower, and share less", "key", t.key[:12], "error", err)
			t.worn = err
		}
	}
	d.log.Info("template made", "key", t.key[:12], "mib", t.bytes>>20, "forks", t.zygote != nil)
	return t, nil
}

func (d *Driver) makeTemplate(ctx context.Context, s hypervisor.Spec, ready func(context.Context, hypervisor.VM) error) (_ *template, err error) {
	// Before and after: a file that changes meanwhile makes a template that is nobody's.
	key, err := d.TemplateKey(ctx, s)
	if err != nil {
		return nil, err
	}
	t := &template{key: key}
	if t.memory, err = newMemory("guest-memory", memoryMiB(s.MemoryBytes)<<20); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.memory.Close()
		}
	}()
	if t.state, err = newMemory("guest-state", 0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.state.Close()
		}
	}()
	v, err := d.start(ctx, s, origin{ram: ramShared, memory: t.memory})
	if err != nil {
		return nil, err
	}
	err = v.keep(ctx, t, ready)
	// Its process must be gone before the memory can be sealed.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if err := errors.Join(err, v.Shutdown(ending)); err != nil {
		return nil, err
	}
	for _, f := range []*os.File{t.memory, t.state} {
		if err := seal(f); err != nil {
			return nil, err
		}
	}
	if t.bytes, err = held(t.memory, t.state); err != nil {
		return nil, err
	}
	after, err := d.TemplateKey(ctx, s)
	if err != nil {
		return nil, err
	}
	if after != key {
		return nil, errors.New("what it is made of changed meanwhile")
	}
	return t, nil
}

// keep waits until the guest is ready, stops it and writes down its state.
func (v *vm) keep(ctx context.Context, t *template, ready func(context.Context, hypervisor.VM) error) error {
	if err := ready(ctx, v); err != nil {
		return fmt.Errorf("%w%s", err, v.lastWords())
	}
	if err := v.monitor.execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	return v.migrate(ctx, "migrate", t.state)
}

// becomeClone gives a VM that waits for it the state of its template.
func (v *vm) becomeClone(ctx context.Context, from origin) error {
	if err := from.unchanged(ctx); err != nil {
		return err
	}
	return v.migrate(ctx, "migrate-incoming", from.state)
}

// stateName is how QEMU calls the descriptor of a state it is given.
const stateName = "state"

// migrate writes the VM's state to a file, or reads it from there. The memory stays where it is:
// what QEMU maps shared is left out (capability x-ignore-shared), and a clone's memory counts as such
// by its name in the state. It is experimental by name, and of all QEMUs from 4.0 on.
func (v *vm) migrate(ctx context.Context, command string, state *os.File) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	capabilities := []capability{{"x-ignore-shared", true}, {"events", true}}
	if err := v.monitor.execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": capabilities}, nil); err != nil {
		return err
	}
	if err := v.monitor.executeWith(ctx, "getfd", map[string]any{"fdname": stateName}, nil, state); err != nil {
		return err
	}
	if err := v.monitor.execute(ctx, command, map[string]any{"uri": "fd:" + stateName}, nil); err != nil {
		return err
	}
	select {
	case status := <-v.moved:
		if status != "completed" {
			return fmt.Errorf("qmp %s: it has %s", command, status)
		}
		return nil
	case <-v.monitor.done:
		return fmt.Errorf("qmp %s: %w", command, errQMPClosed)
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: not completed: %w", command, ctx.Err())
	}
}

// onMigration notes the end of a migration.
func (v *vm) onMigration(e qmpEvent) {
	var migration struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(e.Data, &migration); err != nil {
		return
	}
	switch migration.Status {
	case "completed", "failed", "cancelled":
		select {
		case v.moved <- migration.Status:
		default:
		}
	}
}

func newMemory(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("making the memory of a template: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("making the memory of a template: %w", err)
	}
	return f, nil
}

// seal makes the file what it is for good. It fails while anybody could write to it by a mapping.
func seal(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	if err != nil {
		return fmt.Errorf("sealing the memory of a template: %w", err)
	}
	return nil
}

// held is the memory of the host that the files have.
func held(files ...*os.File) (bytes int64, err error) {
	for _, f := range files {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return 0, fmt.Errorf("measuring a template: %w", err)
		}
		bytes += st.Blocks * 512
	}
	return bytes, nil
}
