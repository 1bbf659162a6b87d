// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	"bulkhead/bus/childtest"
	vmworker "bulkhead/vm-worker"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
)

// childEnv holds the childSetup of a process that is to be a worker.
const childEnv = "BULKHEAD_TEST_WORKER"

type childSetup struct {
	RunDir, Machines string
}

// childMain is a worker in a process of its own, to be killed.
func childMain() int {
	var s childSetup
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	go func() { // the test process is gone
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	ctx := context.Background()
	conn, err := bus.Dial(ctx, s.RunDir, "vm-worker", bus.Persistent())
	if err == nil {
		err = vmworker.Run(ctx, vmworker.Deps{
			Conn: conn, RunDir: s.RunDir, Config: testConfig(), Driver: remote{s.Machines}, Version: "0.0.1",
			Log:     hclog.New(&hclog.LoggerOptions{Name: "worker", Level: hclog.Error}),
			Serving: func() { _ = conn.NATS().Flush(); fmt.Println("serving") },
		})
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// serveChild runs a worker in a process of its own, whose VMs live in this one:
// they outlive it as QEMU outlives a worker. The result kills it.
func (h *host) serveChild(o fake.Options) (kill func()) {
	h.t.Helper()
	socket := filepath.Join(h.bus.RunDir, "machines.sock")
	if _, err := os.Stat(socket); errors.Is(err, os.ErrNotExist) {
		serveMachines(h.t, socket, fake.New(o))
	}
	setup, err := json.Marshal(childSetup{h.bus.RunDir, socket})
	if err != nil {
		h.t.Fatal(err)
	}
	return childtest.Start(h.t, childEnv+"="+string(setup)).Kill
}

// serveMachines starts VMs for workers in other processes.
func serveMachines(t *testing.T, socket string, driver *fake.Driver) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var spec hypervisor.Spec
			answer := ""
			if err := json.NewDecoder(conn).Decode(&spec); err != nil {
				answer = err.Error()
			} else if vm, err := driver.Start(context.Background(), spec); err != nil {
				answer = err.Error()
			} else {
				t.Cleanup(func() { _ = vm.Kill(context.Background()) })
			}
			_ = json.NewEncoder(conn).Encode(answer)
			conn.Close()
		}
	})
}

// remote is a driver whose VMs are another process's fake ones.
type remote struct{ socket string }

func (remote) Name() string { return fake.Name }

func (r remote) Start(_ context.Context, s hypervisor.Spec) (hypervisor.VM, error) {
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(s); err != nil {
		return nil, err
	}
	var answer string
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return nil, err
	}
	if answer != "" {
		return nil, errors.New(answer)
	}
	rec, err := hypervisor.LoadRecord(s.Dir)
	if err != nil {
		return nil, err
	}
	return take(rec)
}

func (remote) Adopt(_ context.Context, rec hypervisor.Record) (hypervisor.VM, error) {
	return take(rec)
}

// machine is a VM known by its directory alone.
type machine struct {
	rec   hypervisor.Record
	pidfd *os.File
	done  chan struct{}
}

func take(rec hypervisor.Record) (hypervisor.VM, error) {
	pidfd, err := rec.Pidfd()
	if err != nil {
		return nil, err
	}
	m := &machine{rec: rec, pidfd: pidfd, done: make(chan struct{})}
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return nil, err
	}
	go func() {
		err := raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return err == nil && n > 0
		})
		if err == nil {
			close(m.done)
		}
	}()
	return m, nil
}

func (m *machine) ID() string                                    { return m.rec.ID }
func (m *machine) Record() hypervisor.Record                     { return m.rec }
func (m *machine) Pidfd() (*os.File, error)                      { return m.rec.Pidfd() }
func (m *machine) Done() <-chan struct{}                         { return m.done }
func (m *machine) Events() <-chan hypervisor.Event               { return nil }
func (m *machine) ConsoleTail(int) string                        { return "" }
func (m *machine) ExitReason() string                            { return "its process ended" }
func (m *machine) Release()                                      { m.pidfd.Close() }
func (m *machine) Resize(context.Context, hypervisor.Size) error { return nil }
func (m *machine) Pause(context.Context) error                   { return nil }
func (m *machine) Resume(context.Context) error                  { return nil }
func (m *machine) Shutdown(ctx context.Context) error            { return m.Kill(ctx) }
func (m *machine) DialCtl(ctx context.Context) (net.Conn, error) { return m.dial(ctx, "ctl.sock") }
func (m *machine) DialIO(ctx context.Context) (net.Conn, error)  { return m.dial(ctx, "io.sock") }
func (m *machine) DialNet(ctx context.Context) (net.Conn, error) { return m.dial(ctx, "net.sock") }

func (m *machine) dial(ctx context.Context, name string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(m.rec.Dir, name))
}

func (m *machine) AttachMount(context.Context, *os.File, string, bool, bool) error { return nil }
func (m *machine) KeepMounts() (hypervisor.KeptMounts, error)                      { return nil, errors.ErrUnsupported }
func (m *machine) DetachMounts(context.Context, string) error                      { return nil }
func (m *machine) AttachShare(context.Context, string) error                       { return nil }
func (m *machine) AttachDisk(context.Context, hypervisor.Disk) error               { return nil }
func (m *machine) DetachDisks(context.Context, string) error                       { return nil }
func (m *machine) AttachNIC(context.Context, hypervisor.NIC) error                 { return nil }
func (m *machine) DetachNIC(context.Context, string) error                         { return nil }
func (m *machine) NICs(context.Context) ([]hypervisor.PluggedNIC, error)           { return nil, nil }
func (m *machine) MirrorMounts(context.Context, hypervisor.Followed) error         { return nil }

func (m *machine) Kill(ctx context.Context) error {
	if err := m.rec.KillProcess(); err != nil {
		return err
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
