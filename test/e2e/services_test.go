// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	hostv1 "bulkhead/proto/host/v1"
	ksmv1 "bulkhead/proto/ksm/v1"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/test/e2e/host"
)

// binaries are the services as processes of their own, by their name on the bus.
var binaries = map[string]string{"vm": "bulkhead-vm-worker", "net": "bulkhead-network", "ksm": "bulkhead-ksm-worker"}

func statusOf(ctx context.Context, conn *bus.Conn, service string) (*busv1.ServiceStatus, error) {
	return bus.Call[busv1.ServiceStatus](ctx, conn, conn.Subject(service, "status"), &busv1.StatusRequest{})
}

func checkStatus(t *testing.T, conn *bus.Conn, service string, pid int) {
	t.Helper()
	status, err := statusOf(within(t, commandTime), conn, service)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the service", status.GetService(), service)
	expect(t, "the process of "+service, int(status.GetPid()), pid)
	expect(t, "the readiness of "+service, status.GetReady(), true)
}

func TestEveryServiceAnswersInsideTheDaemon(t *testing.T) {
	h := sharedHost(t)
	conn := dial(t, h)
	for _, service := range []string{"vm", "net", "ksm", "host"} {
		checkStatus(t, conn, service, h.Daemon().PID())
	}
	info, err := bus.Call[hostv1.InfoReply](within(t, commandTime), conn, conn.Subject("host", "info"), &hostv1.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the host", info.GetHost(), h.ID)
	expect(t, "the run directory", info.GetRunDir(), h.RunDir)
	expect(t, "its kernel", info.GetKernel(), hostRelease(t))
	expect(t, "the number of services", len(info.GetServices()), 3)
	if _, err := bus.Call[ksmv1.KernelStateReply](within(t, commandTime), conn, conn.Subject("ksm", "kernel"), &ksmv1.KernelStateRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := bus.Call[netv1.ListReply](within(t, commandTime), conn, conn.Subject("net", "list"), &netv1.ListRequest{}); err != nil {
		t.Error(err)
	}
}

// Every service runs as a process of its own; one may die without the others,
// and comes back. No VM is needed for that.
func TestEveryServiceRunsAlone(t *testing.T) {
	h := newHost(t, "apart", host.Settings{Services: []string{}, Hypervisor: "fake"})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	logOnFailure(t, h.Log())
	t.Cleanup(func() {
		if err := h.Stop(); err != nil {
			t.Error(err)
		}
	})
	conn := dial(t, h)
	checkStatus(t, conn, "host", h.Daemon().PID())
	for service := range binaries {
		if _, err := statusOf(within(t, commandTime), conn, service); bus.ReasonOf(err) != bus.Unavailable {
			t.Errorf("the absent service %s: %v", service, err)
		} else {
			sentence(t, err.Error(), "not running", "start it")
		}
	}

	running := map[string]*host.Process{}
	start := func(service string) {
		t.Helper()
		p, err := h.StartService(t.Context(), binaries[service])
		if err != nil {
			t.Fatal(err)
		}
		running[service] = p
	}
	for service := range binaries {
		start(service)
	}
	t.Cleanup(func() {
		for _, p := range running {
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	for service := range binaries {
		checkStatus(t, conn, service, running[service].PID())
	}
	fakeLife(t, h)

	for killed := range binaries {
		t.Run("without "+killed, func(t *testing.T) {
			if err := running[killed].Kill(); err != nil {
				t.Fatal(err)
			}
			must(t, deathTime, func() error {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := statusOf(ctx, conn, killed); bus.ReasonOf(err) != bus.Unavailable {
					return fmt.Errorf("the dead service %s: %w", killed, err)
				}
				return nil
			})
			for service := range binaries {
				if service != killed {
					checkStatus(t, conn, service, running[service].PID())
				}
			}
			checkStatus(t, conn, "host", h.Daemon().PID())
			start(killed)
			checkStatus(t, conn, killed, running[killed].PID())
		})
	}
	fakeLife(t, h)

	// The bus may die as well; the services come back to its successor.
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	restart(t, h)
	conn = dial(t, h)
	for service := range binaries {
		must(t, cleanTime, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := statusOf(ctx, conn, service)
			return err
		})
		checkStatus(t, conn, service, running[service].PID())
	}
	fakeLife(t, h)
	if err := h.NoRecords(); err != nil {
		t.Error(err)
	}
}

// fakeLife takes a container through its life on a hypervisor that is none.
func fakeLife(t *testing.T, h *host.Host) {
	t.Helper()
	o := newOCI(t, h)
	id := newID("fake")
	m := o.create(id, newSpec("sleep", "1000"))
	expect(t, "the status", o.status(id), "created")
	o.do("start", id)
	expect(t, "the status", o.status(id), "running")
	o.do("pause", id)
	expect(t, "the status", o.status(id), "paused")
	o.do("resume", id)
	o.do("kill", id, "KILL")
	exits(t, m, 137)
	must(t, deathTime, func() error { return is(o.status(id), "stopped") })
	o.do("delete", id)
	o.fails(1, "container does not exist", "state", id)
}
