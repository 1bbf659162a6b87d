// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"
)

func TestGuestBootsAndAnswersOnBothPorts(t *testing.T) {
	t.Parallel()
	spec := newSpec(t)
	begin := time.Now()
	v := startVM(t, spec)
	started := time.Since(begin)
	c := connect(t, v)
	uptime := c.ready()
	t.Logf("start returned after %s, the guest answered after %s with uptime %s s", started, time.Since(begin), uptime)

	if got := c.ask("echo hello"); got != "hello" {
		t.Errorf("the guest answers %q", got)
	}
	conn, err := v.DialIO(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 4)
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(buf); err != nil || string(buf) != "ping" {
		t.Errorf("the io port gives %q, %v", buf, err)
	}
	if got := c.ask("read /proc/cmdline"); strings.Contains(got, spec.ID) {
		t.Errorf("the guest's machine is of one sandbox: %s", got)
	}
}

func TestEndOfTheVMHasAReason(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		end    func(*testing.T, hypervisor.VM, *control)
		reason string
		event  hypervisor.EventKind
	}{
		{"power off", func(_ *testing.T, _ hypervisor.VM, c *control) { c.send("poweroff") }, "the guest powered off", hypervisor.EventPowerOff},
		{"reboot", func(_ *testing.T, _ hypervisor.VM, c *control) { c.send("reboot") }, "the guest reset its machine", hypervisor.EventReset},
		{"panic", func(_ *testing.T, _ hypervisor.VM, c *control) { c.send("panic") }, "the guest's kernel panicked: Attempted to kill init", hypervisor.EventPanicked},
		{"qemu killed", func(t *testing.T, v hypervisor.VM, _ *control) {
			if err := syscall.Kill(v.Record().PID, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}, "qemu was ended by signal 9", ""},
		{"kill", func(t *testing.T, v hypervisor.VM, _ *control) {
			if err := v.Kill(t.Context()); err != nil {
				t.Error(err)
			}
		}, "killed by its worker", ""},
		{"shutdown", func(t *testing.T, v hypervisor.VM, _ *control) {
			if err := v.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		}, "shut down by its worker", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := startVM(t, newSpec(t))
			link := connect(t, v)
			link.ready()
			if v.ExitReason() != "" {
				t.Errorf("a living vm has an end: %s", v.ExitReason())
			}
			c.end(t, v, link)
			begin := time.Now()
			waitDone(t, v, 2*time.Second)
			t.Logf("%s after %s", v.ExitReason(), time.Since(begin))
			if !strings.Contains(v.ExitReason(), c.reason) {
				t.Errorf("the reason is %q, want %q in it", v.ExitReason(), c.reason)
			}
			if err := v.DetachMounts(t.Context(), "k"); err != nil {
				t.Errorf("detaching from a dead vm: %v", err)
			}
			if err := v.Kill(t.Context()); err != nil {
				t.Errorf("killing a dead vm: %v", err)
			}
			var kinds []hypervisor.EventKind
			found := c.event == ""
			for e := range v.Events() {
				kinds = append(kinds, e.Kind)
				found = found || e.Kind == c.event
			}
			if !found {
				t.Errorf("the events are %v, want %s among them", kinds, c.event)
			}
		})
	}
}

func TestLargerMachinesBoot(t *testing.T) {
	t.Parallel()
	spec := newSpec(t)
	spec.VCPUs, spec.MemoryBytes = 3, 5<<30 // beyond the hole below 4 GiB
	c := connect(t, startVM(t, spec))
	c.ready()
	if got := c.ask("read /sys/devices/system/cpu/online"); got != "0-2" {
		t.Errorf("the guest has CPUs %s", got)
	}
	var kib int
	if _, err := fmt.Sscanf(c.ask("read /proc/meminfo"), "MemTotal: %d kB", &kib); err != nil || kib < 4800<<10 {
		t.Errorf("the guest has %d KiB of memory, %v", kib, err)
	}
}
