// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/test/e2e/host"
)

// making is a create under way whose VM is to die.
type making struct {
	o      ociUser
	conn   *bus.Conn
	id     string
	bundle string
	ended  chan struct{} // closed when the command has ended
	m      *host.Monitored
	err    error
}

// deathPoint is a step of a create, seen from outside.
type deathPoint struct {
	what    string
	reached func(c *making, vm *vmv1.Sandbox) bool
}

// madeByInit is a directory of the root file system that is made for a mount, by the container's init in the guest.
const madeByInit = "made/by/init"

var deathPoints = []deathPoint{
	{"its agent has its name", func(*making, *vmv1.Sandbox) bool { return true }},
	{"it has the container's files", func(_ *making, vm *vmv1.Sandbox) bool {
		table, err := os.ReadFile("/proc/" + strconv.Itoa(int(vm.GetPid())) + "/mountinfo")
		return err == nil && strings.Contains(string(table), "/rootfs ")
	}},
	{"the container's init is at work", func(c *making, _ *vmv1.Sandbox) bool {
		_, err := os.Stat(filepath.Join(c.bundle, "rootfs", madeByInit))
		return err == nil
	}},
}

// begin begins to create a container.
func (o ociUser) begin(conn *bus.Conn, what string, spec *specs.Spec) *making {
	o.t.Helper()
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/" + madeByInit, Type: "tmpfs", Source: "tmpfs"})
	c := &making{o: o, conn: conn, id: newID(what), bundle: o.bundle(spec), ended: make(chan struct{})}
	ctx := within(o.t, launchTime)
	o.t.Cleanup(func() { <-c.ended; o.remove(c.id) })
	go func() {
		defer close(c.ended)
		argv := o.host.Args(o.root, "create", "--bundle", c.bundle, "--pid-file", o.pidFile(c.id), c.id)
		c.m, c.err = host.Monitor(ctx, o.pidFile(c.id), argv...)
	}()
	return c
}

// look is the container and its VM, while there is one.
func (c *making) look() (*vmv1.Container, *vmv1.Sandbox) {
	list := c.o.list(c.conn)
	for _, made := range list.GetContainers() {
		for _, s := range list.GetSandboxes() {
			if made.GetRef().GetId() == c.id && s.GetId() == made.GetSandbox() {
				return made, s
			}
		}
	}
	return nil, nil
}

// killAt kills QEMU at a point of the create. It is stopped first, and nothing is proved when the container is there all the same a
// moment later, as what the guest had said was still on its way: then it is let go, and killAt is false.
func (c *making) killAt(point deathPoint, before int32) (vm *vmv1.Sandbox, killed bool) {
	t := c.o.t
	t.Helper()
	for deadline := time.Now().Add(launchTime); ; time.Sleep(time.Millisecond) {
		made, s := c.look()
		if made != nil && made.GetStatus() != vmv1.ContainerStatus_CONTAINER_STATUS_CREATING {
			return nil, false
		}
		if s.GetState() == "running" && s.GetPid() != before && point.reached(c, s) {
			vm = s
			break
		}
		select {
		case <-c.ended:
			t.Fatalf("the create has ended: %v, %v", c.m, c.err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the create does not come so far: %v, %v", made, s)
		}
	}
	pid := int(vm.GetPid())
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if made, _ := c.look(); made.GetStatus() != vmv1.ContainerStatus_CONTAINER_STATUS_CREATING {
			return vm, unix.Kill(pid, unix.SIGCONT) != nil
		}
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return vm, true
}

// result waits for the end of the create.
func (c *making) result() *host.Monitored {
	c.o.t.Helper()
	<-c.ended
	if c.err != nil {
		c.o.t.Fatal(c.err)
	}
	return c.m
}

// heldNamespaces are the mount namespaces that the daemon holds.
func heldNamespaces(h *host.Host) error {
	open, err := filepath.Glob("/proc/" + strconv.Itoa(h.Daemon().PID()) + "/fd/*")
	for _, fd := range open {
		if to, readErr := os.Readlink(fd); readErr == nil && strings.HasPrefix(to, "mnt:") {
			err = errors.Join(err, fmt.Errorf("the daemon holds the mount namespace %s", to))
		}
	}
	return err
}

// maxLate is how often a create may be done before its VM is dead, on a busy machine.
const maxLate = 8

// TestAVMThatIsKilledWhileItsContainerIsMadeIsReplaced: at each point, whatever the VM came from, the create goes on with another VM. The
// container has all that it should, on the share and by its network, and of the first VM nothing is left.
func TestAVMThatIsKilledWhileItsContainerIsMadeIsReplaced(t *testing.T) {
	needsProduct(t)
	for _, c := range []struct {
		origin   string
		settings host.Settings
		points   []deathPoint
	}{
		{"pool", host.Settings{}, deathPoints},
		{"template", host.Settings{NoPool: true}, deathPoints[2:]},
		{"boot", host.Settings{Boot: true}, deathPoints[1:]},
	} {
		t.Run(c.origin, func(t *testing.T) {
			h := newHost(t, "replaced-"+c.origin, c.settings)
			if err := h.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			stopAtEnd(t, h)
			conn := dial(t, h)
			o := newOCI(t, h)
			if c.origin == "template" {
				exits(t, o.launch(newID("first"), newSpec("true")), 0)
				o.do("delete", o.list(conn).GetContainers()[0].GetRef().GetId())
				awaitTemplate(t, conn)
			}
			for _, point := range c.points {
				t.Run(point.what, func(t *testing.T) {
					o := ociUser{t, h, o.root, t.TempDir()}
					if c.origin == "pool" {
						awaitPool(t, conn, "")
					}
					wire := newWire(t)
					idle := newIdle(t, h)
					for range maxLate {
						if replacedOne(t, o, conn, c.origin, point, wire) {
							must(t, cleanTime, idle)
							must(t, cleanTime, func() error { return wire.untouched(t) })
							if err := heldNamespaces(h); err != nil {
								t.Error(err)
							}
							return
						}
						if c.origin == "pool" {
							awaitPool(t, conn, "")
						}
					}
					t.Errorf("the container was there %d times before its VM was dead", maxLate)
				})
			}
		})
	}
}

// replacedOne makes a container whose first VM dies at the point, unless that is missed: then it is false.
func replacedOne(t *testing.T, o ociUser, conn *bus.Conn, origin string, point deathPoint, wire *wire) bool {
	t.Helper()
	data := t.TempDir()
	write(t, filepath.Join(data, "word"), "from the host\n")
	spec := wire.spec(t, nil, "sh", "-c", "ping -c 1 -W 60 "+wireFar4+" >/dev/null && cat /data/word && echo back > /data/back; exit 7")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: data, Options: []string{"rbind", "rw"}})
	c := o.begin(conn, "replaced", spec)
	first, killed := c.killAt(point, 0)
	m := c.result()
	if !killed {
		t.Logf("it was created in time")
		o.do("delete", "--force", c.id)
		must(t, cleanTime, func() error { return o.noTrace(conn, c.id) })
		return false
	}
	if m.Code != 0 {
		t.Fatalf("create ended with %d: %s", m.Code, m.Stderr)
	}
	vm := o.sandbox(conn, c.id)
	if vm.GetId() != first.GetId() || vm.GetPid() == first.GetPid() || first.GetOrigin() != origin || vm.GetOrigin() != "boot" || vm.GetState() != "running" {
		t.Errorf("the container's VM is %v, and the one that was killed was %v", vm, first)
	}
	sentence(t, vm.GetOriginReason(), "the "+origin+" VM before it ended while its container was made", "signal 9")
	ev, err := lastEvent(conn, "sandbox", vm.GetId(), "replaced")
	if err != nil {
		t.Fatal(err)
	}
	if ev.GetAttributes()["origin"] != origin {
		t.Errorf("the event is %v", ev)
	}
	sentence(t, ev.GetAttributes()["reason"], "signal 9")
	if err := gone("/proc/" + strconv.Itoa(int(first.GetPid()))); err != nil {
		t.Error(err)
	}
	o.do("start", c.id)
	exits(t, m, 7)
	if got := wholeOutput(t, m); got != "from the host\n" {
		t.Errorf("the container says %q", got)
	}
	if got, err := os.ReadFile(filepath.Join(data, "back")); err != nil || string(got) != "back\n" {
		t.Errorf("the host sees %q, %v", got, err)
	}
	o.do("delete", c.id)
	must(t, cleanTime, func() error { return o.noTrace(conn, c.id) })
	return true
}

// TestAVMThatIsKilledTwiceWhileItsContainerIsMadeIsAnError: which says what the guests said last, and nothing is left.
func TestAVMThatIsKilledTwiceWhileItsContainerIsMadeIsAnError(t *testing.T) {
	needsProduct(t)
	h := newHost(t, "replaced-twice", host.Settings{Boot: true, Kernel: talkativeKernel(t)})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, h)
	conn := dial(t, h)
	o := newOCI(t, h)
	idle := newIdle(t, h)
	wire := newWire(t)
	for range maxLate {
		c := o.begin(conn, "twice", wire.spec(t, nil, "true"))
		first, killed := c.killAt(deathPoints[1], 0)
		if killed {
			_, killed = c.killAt(deathPoints[1], first.GetPid())
		}
		m := c.result()
		if killed {
			if m.Code == 0 {
				t.Fatal("it was created")
			}
			said := m.Stderr.String()
			sentence(t, said, "VM "+first.GetId()+" ended before its container was created", "signal 9", "so had the VM before it")
			if _, words, _ := strings.Cut(said, "last words of the guest's console: "); !strings.Contains(words, "Run /sbin/bulkhead-agent as init process") {
				t.Errorf("the guest's last words are missing: %q", said)
			}
			if err := gone(o.pidFile(c.id)); err != nil {
				t.Error(err)
			}
		} else {
			t.Log("it was created in time")
			o.do("delete", "--force", c.id)
		}
		must(t, cleanTime, func() error { return o.noTrace(conn, c.id) })
		must(t, cleanTime, idle)
		must(t, cleanTime, func() error { return wire.untouched(t) })
		if err := heldNamespaces(h); err != nil {
			t.Error(err)
		}
		if killed {
			return
		}
	}
	t.Errorf("the container was there %d times before its VMs were dead", maxLate)
}

// talkativeKernel is the guest's kernel with one message of a level that its console shows: a guest to which nothing happens is silent.
func talkativeKernel(t *testing.T) string {
	t.Helper()
	kernel, err := os.ReadFile(filepath.Join(ground.Guest, "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	const said = "Run %s as init process"
	info, alert := []byte("\x016"+said), []byte("\x011"+said) // include/linux/kern_levels.h
	if bytes.Count(kernel, info) != 1 {
		t.Fatalf("the guest's kernel does not say %q once", said)
	}
	file := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(file, bytes.Replace(kernel, info, alert, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestAMistakeOfTheContainerCostsOneVM: nothing of it is tried again.
func TestAMistakeOfTheContainerCostsOneVM(t *testing.T) {
	h := newHost(t, "mistake", host.Settings{Boot: true})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, h)
	conn := dial(t, h)
	o := newOCI(t, h)
	id := newID("mistake")
	told := make(chan string, 64)
	sub, err := bus.OnEvent(conn, "sandbox", func(ev *busv1.Event) { told <- ev.GetEvent() })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	o.fails(1, "no-such-program", "create", "--bundle", o.bundle(newSpec("/no-such-program")), "--pid-file", o.pidFile(id), id)
	starts := 0
	for name := ""; name != "removed"; {
		select {
		case name = <-told:
		case <-time.After(cleanTime):
			t.Fatal("the VM is not removed")
		}
		switch name {
		case "starting":
			starts++
		case "replaced":
			t.Error("the VM was replaced")
		}
	}
	if starts != 1 {
		t.Errorf("%d VMs were started", starts)
	}
	must(t, cleanTime, func() error { return o.noTrace(conn, id) })
}
