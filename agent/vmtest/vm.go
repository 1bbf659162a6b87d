// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package vmtest boots the agent as PID 1 of a real VM, in QEMU without
// hardware virtualisation, and plays the host: the bus, the router and the
// relays. The tests of what the agent promises are beside it.
//
// Only tests may import it. The invariant: a test leaves no process, no socket
// and no file outside its temporary directory.
package vmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/link"
	agentv1 "bulkhead/proto/agent/v1"
)

// Sandbox is the name of the VM that Boot starts.
const Sandbox = "vmtest"

// VM is a running guest and the host around it.
type VM struct {
	Conn  *bus.Conn      // the host's connection to the bus
	Share string         // the directory behind the guest's share
	Ready *agentv1.Ready // what the agent said first
	Phase Phases
	// Rehearsed is what the agent said of its rehearsal, if it was asked for one.
	Rehearsed *agentv1.Rehearsed

	t       testing.TB
	pid     int // of QEMU
	dir     string
	end     func() // ends the VM; once
	ended   chan struct{}
	console *console
	bus     *bustest.Bus
	streams *streams
	exits   chan *agentv1.Exited
	readies chan *agentv1.Ready
	wg      sync.WaitGroup

	mu            sync.Mutex // guards the two below
	cutCtl, cutIO context.CancelFunc
}

// Phases are the moments of a boot, since QEMU was started.
type Phases struct {
	Linked time.Duration // the guest confirmed the control session
	Ready  time.Duration // the agent serves requests
	Agent  time.Duration // the guest's own uptime at the agent's main
}

type console struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// Machine says how a VM differs from the usual one.
type Machine struct {
	Options    []string // of QEMU
	Parameters string   // of the kernel
	// Rehearse has the guest rehearse before it is greeted, with a root file system that this puts there.
	Rehearse func(dir string)
}

// Boot starts a VM and waits until its agent is ready. The end of the test ends it.
func Boot(t testing.TB) *VM {
	t.Helper()
	return BootMachine(t, Machine{})
}

// BootMachine is Boot for a machine that differs.
func BootMachine(t testing.TB, m Machine) *VM {
	t.Helper()
	image := guestImage(t)
	dir := t.TempDir()
	vm := &VM{t: t, dir: dir, Share: filepath.Join(dir, "share"), console: &console{}, exits: make(chan *agentv1.Exited, 1024)}
	err := os.Mkdir(vm.Share, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	vm.bus = bustest.Start(t)
	vm.Conn = vm.bus.Conn()
	vm.readies = make(chan *agentv1.Ready, 8)
	watch(t, vm.Conn, "ready", vm.readies)
	watch(t, vm.Conn, "exited", vm.exits)
	ctx, cancel := context.WithCancel(context.Background())
	begun := time.Now()
	ended := vm.startQEMU(ctx, image, dir, m)
	vm.ended = ended
	vm.end = sync.OnceFunc(func() {
		cancel()
		<-ended
		vm.wg.Wait()
		if t.Failed() {
			t.Logf("the guest's console:\n%s", vm.console)
		}
	})
	t.Cleanup(vm.end)
	vm.streams = newStreams()
	vm.wg.Go(func() { vm.serveIO(ctx, filepath.Join(dir, "io.sock")) })
	if m.Rehearse != nil {
		m.Rehearse(filepath.Join(vm.Share, rehearsal, "rootfs"))
		if err := os.WriteFile(filepath.Join(vm.Share, rehearsal, "hosts"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if vm.Rehearsed, err = vm.AskRehearsal(ctx); err != nil {
			t.Fatalf("asking for a rehearsal: %v; the guest's console:\n%s", err, vm.console)
		}
	}
	vm.wg.Go(func() { vm.serveCtl(ctx, filepath.Join(dir, "ctl.sock"), begun) })
	select {
	case vm.Ready = <-vm.readies:
		vm.Phase.Ready = time.Since(begun)
		vm.Phase.Agent = time.Duration(vm.Ready.GetUptimeSeconds() * float64(time.Second))
	case <-ended:
		t.Fatalf("the VM ended before its agent was ready; it says:\n%s", vm.console)
	case <-time.After(30 * time.Second):
		t.Fatalf("the agent did not become ready; the guest's console:\n%s", vm.console)
	}
	return vm
}

// rehearsal is where the files for a rehearsal are, below the share.
const rehearsal = "rehearsal"

// AskRehearsal has the guest rehearse, in a session of its own on the control port.
func (vm *VM) AskRehearsal(ctx context.Context) (*agentv1.Rehearsed, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	session, err := dialPort(ctx, filepath.Join(vm.dir, "ctl.sock"))
	if err != nil {
		return nil, err
	}
	defer session.Close()
	defer context.AfterFunc(ctx, func() { session.Close() })()
	return bus.AskRehearsal(session, &agentv1.Rehearsal{
		Rootfs: rehearsal + "/rootfs", Program: "/bin/cat", File: rehearsal + "/hosts",
		Configure: &agentv1.ConfigureRequest{
			Hostname: "other", UnixNanos: time.Now().UnixNano(), Vcpus: 1,
			Memory: &agentv1.Memory{Has: 256 << 20, Base: 256 << 20, Limit: 1 << 30, Containers: 1 << 30},
		},
	})
}

// Close ends the VM before the end of the test does.
func (vm *VM) Close() { vm.end() }

// RunToEnd boots a guest with these kernel parameters, waits until it powers off by itself, and returns
// what it printed.
func RunToEnd(t testing.TB, parameters string) string {
	t.Helper()
	image := guestImage(t)
	dir := t.TempDir()
	vm := &VM{t: t, Share: filepath.Join(dir, "share"), console: &console{}}
	if err := os.Mkdir(vm.Share, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	<-vm.startQEMU(ctx, image, dir, Machine{Parameters: parameters})
	if ctx.Err() != nil {
		t.Fatalf("the guest did not power off; it says:\n%s", vm.console)
	}
	return vm.Console()
}

func (vm *VM) startQEMU(ctx context.Context, image guest, dir string, m Machine) (ended chan struct{}) {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-machine", "q35,hpet=off,vmport=off,smbus=off,sata=off,i8042=off,smm=off,memory-backend=ram",
		"-accel", "tcg,tb-size=64", "-cpu", "max",
		"-m", "256M,slots=4,maxmem=2G", "-object", "memory-backend-memfd,id=ram,size=256M,share=on",
		"-kernel", image.kernel, "-append", "root=/dev/pmem0 rootfstype=ext4 rootflags=dax=always ro rootwait console=ttyS0 quiet panic=-1 " +
			"tsc=reliable no_timer_check init=/sbin/bulkhead-agent " + m.Parameters,
		"-object", "memory-backend-file,id=root,mem-path=" + image.image + ",size=" + strconv.FormatInt(image.size, 10) + ",share=on,readonly=on",
		"-device", "virtio-pmem-pci,memdev=root",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-monitor", "unix:" + filepath.Join(dir, "monitor.sock") + ",server=on,wait=off",
		"-chardev", "socket,id=ctl,server=on,wait=off,path=" + filepath.Join(dir, "ctl.sock"),
		"-device", "virtserialport,id=ctlport,chardev=ctl,name=bulkhead.ctl",
		"-chardev", "socket,id=io,server=on,wait=off,path=" + filepath.Join(dir, "io.sock"),
		"-device", "virtserialport,chardev=io,name=bulkhead.io",
		"-chardev", "socket,id=net,server=on,wait=off,path=" + filepath.Join(dir, "net.sock"),
		"-device", "virtserialport,chardev=net,name=bulkhead.net",
		"-fsdev", "local,id=share,multidevs=remap,security_model=passthrough,path=" + vm.Share,
		"-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, m.Options...)...)
	cmd.Stdout, cmd.Stderr = vm.console, vm.console
	if err := cmd.Start(); err != nil {
		vm.t.Fatal(err)
	}
	vm.pid = cmd.Process.Pid
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		if err := cmd.Wait(); err != nil && ctx.Err() == nil {
			fmt.Fprintf(vm.console, "QEMU: %v\n", err)
		}
	}()
	return ended
}

// serveCtl carries the guest's bus connection to the gate of the bus, again after each end of a
// session, as the worker does.
func (vm *VM) serveCtl(ctx context.Context, path string, begun time.Time) {
	for ctx.Err() == nil {
		session, err := dialPort(ctx, path)
		if err != nil {
			return
		}
		if vm.Phase.Linked == 0 {
			vm.Phase.Linked = time.Since(begun)
		}
		conn, err := net.Dial("unix", filepath.Join(vm.bus.RunDir, "guest.sock"))
		if err == nil {
			_, err = fmt.Fprintf(conn, "GUEST %s\n", Sandbox)
		}
		if err == nil {
			entropy := make([]byte, 64)
			_, _ = rand.Read(entropy) // never fails
			err = bus.Greet(session, &agentv1.Greeting{Vm: Sandbox, Entropy: entropy, UnixNanos: time.Now().UnixNano()})
		}
		if err != nil {
			vm.t.Error(err)
			return
		}
		life, cut := context.WithCancel(ctx)
		vm.setCut(&vm.cutCtl, cut)
		pipe(life, session.NetConn(), conn)
		cut()
	}
}

func (vm *VM) serveIO(ctx context.Context, path string) {
	for ctx.Err() == nil {
		session, err := dialPort(ctx, path)
		if err != nil {
			return
		}
		life, cut := context.WithCancel(ctx)
		vm.setCut(&vm.cutIO, cut)
		stop := context.AfterFunc(life, func() { session.Close() })
		vm.streams.serve(session)
		stop()
		cut()
	}
}

func (vm *VM) setCut(which *context.CancelFunc, cut context.CancelFunc) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	*which = cut
}

// Cut breaks both sessions, as a restart of the host's worker does; they come back by themselves.
func (vm *VM) Cut() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.cutCtl()
	vm.cutIO()
}

// dialPort opens a session as soon as QEMU listens and the guest answers.
func dialPort(ctx context.Context, path string) (*link.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return link.Dial(ctx, conn)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting to %s: %w", path, err)
		case <-time.After(5 * time.Millisecond): // QEMU has no event for a listening socket
		}
	}
}

// pipe copies both ways until one side ends.
func pipe(ctx context.Context, a, b net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			defer cancel()
			buf := make([]byte, 32<<10)
			for {
				n, err := pair[0].Read(buf)
				if n > 0 {
					if _, werr := pair[1].Write(buf[:n]); werr != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
}
