// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/share"

	"golang.org/x/sys/unix"
)

// vm is a running QEMU, started or adopted.
type vm struct {
	rec     hypervisor.Record
	pidfd   *os.File
	stderr  *os.File
	monitor *monitor
	console *console
	events  chan hypervisor.Event
	done    chan struct{} // closed when the process is gone and reason is final
	watched chan struct{} // closed when watch has ended, also by Release
	unplugs unplugs
	memory  chan struct{} // capacity 1: the guest has taken or given back memory
	stopped chan struct{} // capacity 1: the machine was stopped
	moved   chan string   // capacity 1: how a migration ended
	forked  bool          // from a zygote

	mu     sync.Mutex
	size   hypervisor.Size   // guarded by mu: what rec said at first, and Resize since
	order  string            // guarded by mu: what the worker did to end the VM
	guest  *hypervisor.Event // guarded by mu: how the guest ended its machine
	reason string            // guarded by mu
}

var _ hypervisor.VM = (*vm)(nil)

// take connects to the QEMU of rec and lets its guest run, if it does not yet.
// It takes stderr over when it succeeds.
func (d *Driver) take(ctx context.Context, rec hypervisor.Record, stderr *os.File, from origin) (_ *vm, err error) {
	v := &vm{
		rec: rec, stderr: stderr, events: make(chan hypervisor.Event, 16),
		done: make(chan struct{}), watched: make(chan struct{}), memory: make(chan struct{}, 1), stopped: make(chan struct{}, 1), moved: make(chan string, 1),
		size: hypervisor.Size{VCPUs: rec.VCPUs, MemoryBytes: rec.MemoryBytes},
	}
	if v.pidfd, err = rec.Pidfd(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			v.letGo()
		}
	}()
	conn, err := dial(ctx, rec.Dir, socketQMP)
	if err != nil {
		return nil, err
	}
	if v.monitor, err = openMonitor(ctx, conn, v.onEvent); err != nil {
		return nil, err
	}
	if conn, err = dial(ctx, rec.Dir, socketConsole); err != nil {
		return nil, err
	}
	v.console = openConsole(rec.Dir, conn)
	if from.ram.fromState() {
		if err := v.becomeClone(ctx, from); err != nil {
			return nil, err
		}
	}
	status, err := v.status(ctx)
	if err != nil {
		return nil, err
	}
	if status == brokenStatus {
		return nil, errors.New("its machine was stopped by QEMU and cannot go on")
	}
	if status == "inmigrate" {
		return nil, errors.New("its starter died before it had given it the state of its template")
	}
	// Prelaunch also when adopted: the starter died between exec and here.
	if status == "prelaunch" || from.ram.fromState() || from.ram == ramForked {
		if err := v.monitor.execute(ctx, "cont", nil, nil); err != nil {
			return nil, err
		}
	} else if rec.Max.MemoryBytes > rec.BootMemoryBytes {
		// A worker may have died between a change and its record, and a guest gives memory back in its own time.
		// What that worker still asked back is the guest's until it offers it again.
		has, err := v.keepGrowth(ctx, 0, nil)
		if err != nil {
			return nil, err
		}
		v.size.MemoryBytes = rec.BootMemoryBytes + has
	}
	go v.watch()
	go v.endBroken()
	return v, nil
}

// letGo closes everything but stderr and leaves QEMU alone.
func (v *vm) letGo() {
	v.pidfd.Close()
	if v.monitor != nil {
		v.monitor.close()
	}
	if v.console != nil {
		v.console.close()
	}
}

// watch waits for the process's end and writes the reason down.
func (v *vm) watch() {
	defer close(v.watched)
	if err := waitExit(v.pidfd); err != nil {
		return // released
	}
	// The process held the other ends: both readers are about to reach theirs.
	<-v.monitor.done
	<-v.console.done
	status := v.reap()
	reason := v.describe(status)
	v.mu.Lock()
	v.reason = reason
	v.mu.Unlock()
	v.letGo()
	v.stderr.Close()
	close(v.events)
	close(v.done)
}

// waitExit waits until the process of a non-blocking pidfd has ended. The
// error says that the descriptor was closed meanwhile.
func waitExit(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
}

// reap takes the exit status when the process is our child, so that no zombie
// stays; an adopted one is reaped, and its status kept, by whoever inherited it.
func (v *vm) reap() *unix.WaitStatus {
	var status unix.WaitStatus
	for {
		pid, err := unix.Wait4(v.rec.PID, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid != v.rec.PID {
			return nil
		}
		return &status
	}
}

func (v *vm) describe(status *unix.WaitStatus) string {
	v.mu.Lock()
	order, guest := v.order, v.guest
	v.mu.Unlock()
	panicked := panicLine(v.console.end(consoleHalf))
	switch {
	case order != "":
		return order
	case panicked != "":
		v.emit(hypervisor.Event{Kind: hypervisor.EventPanicked, Detail: panicked})
		return "the guest's kernel panicked: " + panicked
	case guest != nil && guest.Kind == hypervisor.EventPowerOff:
		return "the guest powered off"
	case guest != nil:
		return "the guest reset its machine" + v.lastWords()
	case status == nil:
		return "qemu ended" + v.lastWords()
	case status.Signaled():
		return fmt.Sprintf("qemu was ended by signal %d (%s)", int(status.Signal()), status.Signal()) + v.lastWords()
	}
	return fmt.Sprintf("qemu ended with status %d", status.ExitStatus()) + v.lastWords()
}

// lastWords is what QEMU and the guest said last, for a reason.
func (v *vm) lastWords() string {
	var b strings.Builder
	if line := lastLine(errorLogText(v.stderr)); line != "" {
		b.WriteString("; qemu says: " + line)
	}
	if line := lastLine(strings.TrimSpace(v.console.end(512))); line != "" {
		b.WriteString("; the guest's console ends with: " + line)
	}
	return b.String()
}

// onEvent sorts what QEMU reports, docs of SHUTDOWN, STOP and RESUME in qapi/run-state.json,
// of MEMORY_DEVICE_SIZE_CHANGE in qapi/machine.json, of MIGRATION in qapi/migration.json.
func (v *vm) onEvent(e qmpEvent) {
	switch e.Name {
	case "STOP":
		v.emit(hypervisor.Event{Kind: hypervisor.EventStopped})
		select {
		case v.stopped <- struct{}{}:
		default: // somebody is about to look
		}
	case "RESUME":
		v.emit(hypervisor.Event{Kind: hypervisor.EventResumed})
	case "GUEST_PANICKED":
		v.emit(hypervisor.Event{Kind: hypervisor.EventPanicked})
	case "DEVICE_DELETED":
		v.unplugs.happened(deletedDevice(e))
	case "MIGRATION":
		v.onMigration(e)
	case "MEMORY_DEVICE_SIZE_CHANGE":
		select {
		case v.memory <- struct{}{}:
		default: // somebody is about to look
		}
	case "SHUTDOWN":
		v.onShutdown(e)
	}
}

// brokenStatus is that of a machine that QEMU stopped because it cannot go on, as when a processor
// under KVM meets memory that the guest was not given.
const brokenStatus = "internal-error"

// status is the state of the machine, RunState in QEMU's qapi/run-state.json.
func (v *vm) status(ctx context.Context) (string, error) {
	var reply struct {
		Status string `json:"status"`
	}
	err := v.monitor.execute(ctx, "query-status", nil, &reply)
	return reply.Status, err
}

// endBroken ends the VM when it would stand still for ever.
func (v *vm) endBroken() {
	for {
		select {
		case <-v.watched:
			return
		case <-v.stopped:
		}
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		status, err := v.status(ctx)
		cancel()
		if err != nil || status != brokenStatus {
			continue // it has ended, or it was the worker that stopped it
		}
		v.ordered("qemu stopped the machine, which cannot go on (" + brokenStatus + ")" + v.lastWords())
		_ = v.rec.KillProcess() // fails for one that has ended
	}
}

func (v *vm) onShutdown(e qmpEvent) {
	var event hypervisor.Event
	switch text := string(e.Data); {
	case strings.Contains(text, "guest-shutdown"):
		event.Kind = hypervisor.EventPowerOff
	case strings.Contains(text, "guest-reset"):
		event.Kind = hypervisor.EventReset
	case strings.Contains(text, "guest-panic"):
		event.Kind = hypervisor.EventPanicked
	default:
		return // the host's doing
	}
	v.mu.Lock()
	v.guest = &event
	v.mu.Unlock()
	v.emit(event)
}

// emit never blocks: events nobody takes are dropped.
func (v *vm) emit(e hypervisor.Event) {
	select {
	case v.events <- e:
	default:
	}
}

func (v *vm) ID() string                      { return v.rec.ID }
func (v *vm) Done() <-chan struct{}           { return v.done }
func (v *vm) Events() <-chan hypervisor.Event { return v.events }
func (v *vm) ConsoleTail(n int) string        { return v.console.end(n) }

func (v *vm) Record() hypervisor.Record {
	v.mu.Lock()
	defer v.mu.Unlock()
	rec := v.rec
	rec.VCPUs, rec.MemoryBytes = v.size.VCPUs, v.size.MemoryBytes
	return rec
}

func (v *vm) ExitReason() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.reason
}

func (v *vm) Pidfd() (*os.File, error) { return v.rec.Pidfd() }

func (v *vm) DialCtl(ctx context.Context) (net.Conn, error) { return dial(ctx, v.rec.Dir, socketCtl) }
func (v *vm) DialIO(ctx context.Context) (net.Conn, error)  { return dial(ctx, v.rec.Dir, socketIO) }
func (v *vm) DialNet(ctx context.Context) (net.Conn, error) { return dial(ctx, v.rec.Dir, socketNet) }

func (v *vm) AttachMount(ctx context.Context, mount *os.File, relPath string, isDir, readOnly bool) error {
	return v.wrap(share.Attach(ctx, v.pidfd, mount, relPath, isDir, readOnly))
}

// KeepMounts implements hypervisor.VM.
func (v *vm) KeepMounts() (hypervisor.KeptMounts, error) {
	kept, err := share.Keep(v.pidfd)
	if err != nil {
		return nil, v.wrap(err)
	}
	return kept, nil
}

func (v *vm) MirrorMounts(ctx context.Context, f hypervisor.Followed) error {
	err := share.Mirror(ctx, v.pidfd, share.Followed(f))
	if err != nil && v.gone() {
		return nil // its mounts went with its process
	}
	return v.wrap(err)
}

func (v *vm) DetachMounts(ctx context.Context, relPrefix string) error {
	err := share.Detach(ctx, v.pidfd, relPrefix)
	if err != nil && v.gone() {
		return nil // its mounts went with its process
	}
	return v.wrap(err)
}

func (v *vm) gone() bool {
	f, err := v.rec.Pidfd()
	if err == nil {
		f.Close()
	}
	return errors.Is(err, hypervisor.ErrGone)
}

func (v *vm) Pause(ctx context.Context) error {
	return v.wrap(v.monitor.execute(ctx, "stop", nil, nil))
}
func (v *vm) Resume(ctx context.Context) error {
	return v.wrap(v.monitor.execute(ctx, "cont", nil, nil))
}

func (v *vm) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("vm %s: %w", v.rec.ID, err)
}

func (v *vm) Shutdown(ctx context.Context) error {
	v.ordered("the vm was shut down by its worker")
	// An error here is QEMU's end overtaking its answer, or a QEMU that no longer
	// listens: the wait below tells which.
	_ = v.monitor.execute(ctx, "quit", nil, nil)
	select {
	case <-v.watched:
		return nil
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	return v.Kill(ctx)
}

func (v *vm) Kill(ctx context.Context) error {
	select {
	case <-v.done:
		return nil
	default:
	}
	v.ordered("the vm was killed by its worker")
	if err := v.rec.KillProcess(); err != nil {
		return v.wrap(err)
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	select {
	case <-v.watched:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("vm %s: process %d was killed and does not end: %w", v.rec.ID, v.rec.PID, ctx.Err())
	}
}

// ordered notes who ended the VM; the first order counts.
func (v *vm) ordered(what string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.order == "" {
		v.order = what
	}
}

func (v *vm) Release() {
	v.pidfd.Close() // ends watch
	v.monitor.close()
	v.console.close()
	<-v.watched
	v.stderr.Close()
}
