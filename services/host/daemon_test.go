// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	"bulkhead/bus/config"
	"bulkhead/bus/standalone"
	busv1 "bulkhead/proto/bus/v1"
	hostv1 "bulkhead/proto/host/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/services/host"
)

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// newConfig is that of a host of its own, without virtual machines.
func newConfig(t *testing.T) *config.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "host") // not t.TempDir: unix sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := config.Default()
	cfg.Host.ID, cfg.Host.RunDir, cfg.Host.Operator = "testhost", filepath.Join(dir, "run"), false
	cfg.VM.Hypervisor, cfg.VM.Accelerator = "fake", "tcg"
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// daemon is a running bulkheadd.
type daemon struct {
	t      *testing.T
	cancel context.CancelFunc
	ready  chan struct{}
	ended  chan error
}

func start(t *testing.T, cfg *config.Config) *daemon {
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{t: t, cancel: cancel, ready: make(chan struct{}), ended: make(chan error, 1)}
	go func() {
		d.ended <- host.Run(ctx, standalone.Env{Config: cfg, Log: hclog.NewNullLogger(), Ready: func() { close(d.ready) }})
	}()
	t.Cleanup(cancel)
	return d
}

func (d *daemon) awaitReady() {
	d.t.Helper()
	select {
	case <-d.ready:
	case err := <-d.ended:
		d.t.Fatalf("the daemon ended with %v", err)
	case <-time.After(patience):
		d.t.Fatal("the daemon does not get ready")
	}
}

func (d *daemon) end() error {
	d.t.Helper()
	select {
	case err := <-d.ended:
		return err
	case <-time.After(patience):
		d.t.Fatal("the daemon does not end")
		return nil
	}
}

func dial(t *testing.T, cfg *config.Config) *bus.Conn {
	t.Helper()
	conn, err := bus.Dial(t.Context(), cfg.Host.RunDir, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func TestTheDaemonServesEveryServiceAndStartsAgainWhereItStopped(t *testing.T) {
	cfg := newConfig(t)
	for range 2 {
		d := start(t, cfg)
		d.awaitReady()
		conn := dial(t, cfg)
		for _, service := range []string{"host", "vm", "net", "ksm"} {
			status, err := bus.Call[busv1.ServiceStatus](t.Context(), conn, conn.Subject(service, "status"), &busv1.StatusRequest{})
			if err != nil {
				t.Errorf("status of %s: %v", service, err)
				continue
			}
			if status.Service != service || status.Host != "testhost" || !status.Ready {
				t.Errorf("service %s says %v", service, status)
			}
		}
		info, err := bus.Call[hostv1.InfoReply](t.Context(), conn, conn.Subject("host", "info"), &hostv1.InfoRequest{})
		if err != nil || !slices.Equal(info.GetServices(), cfg.Host.Services) {
			t.Errorf("the host says %v, %v", info, err)
		}
		if l, err := bus.Call[vmv1.ListReply](t.Context(), conn, conn.Subject("vm", "list"), &vmv1.ListRequest{}); err != nil || len(l.Containers) != 0 {
			t.Errorf("the vm service lists %v, %v", l, err)
		}
		conn.Close()
		d.cancel()
		if err := d.end(); err != nil {
			t.Fatalf("the daemon ended with %v", err)
		}
		for _, socket := range []string{"bus.sock", "guest.sock", "handover.sock"} {
			if _, err := os.Stat(filepath.Join(cfg.Host.RunDir, socket)); err == nil {
				t.Errorf("%s is left behind", socket)
			}
		}
	}
}

func TestTheDaemonRunsOnlyTheServicesThatAreConfigured(t *testing.T) {
	cfg := newConfig(t)
	cfg.Host.Services = []string{"ksm"}
	d := start(t, cfg)
	d.awaitReady()
	conn := dial(t, cfg)
	if _, err := bus.Call[busv1.ServiceStatus](t.Context(), conn, conn.Subject("ksm", "status"), &busv1.StatusRequest{}); err != nil {
		t.Error(err)
	}
	_, err := bus.Call[busv1.ServiceStatus](t.Context(), conn, conn.Subject("vm", "status"), &busv1.StatusRequest{})
	if bus.ReasonOf(err) != bus.Unavailable {
		t.Errorf("a service that was left out gives %v", err)
	}
	d.cancel()
	if err := d.end(); err != nil {
		t.Error(err)
	}
}

func TestAServiceThatFailsEndsTheDaemonByName(t *testing.T) {
	cfg := newConfig(t)
	dir := filepath.Join(cfg.Host.RunDir, "vm") // served by another worker
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(cfg.Host.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	d := start(t, cfg)
	err = d.end()
	if err == nil || !strings.Contains(err.Error(), "service vm: another vm-worker already serves") {
		t.Errorf("the daemon ended with %v", err)
	}
	select {
	case <-d.ready:
		t.Error("it claimed to be ready")
	default:
	}
	f.Close()
	again := start(t, cfg) // nothing of the failed one is in the way
	again.awaitReady()
	again.cancel()
	if err := again.end(); err != nil {
		t.Error(err)
	}
}
