// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"bulkhead/bus"
)

// Settings are the options of a host that tests vary; the zero value of each
// leaves the product's default, or the build's kernel and image.
type Settings struct {
	Services   []string // nil: all of them in the daemon; empty: none
	Hypervisor string
	QEMU       string
	Kernel     string
	Image      string
	KSM        string // mode; empty: observe
	MaxVMs     int
	Budget     int  // memory that all VMs may have together, MiB
	Boot       bool // each VM boots: no templates, no pool
	NoPool     bool // none stands ready without a container
}

// Host is one bulkheadd with its own run directory, configuration and operator's
// context. It may be killed and started again.
type Host struct {
	ID         string
	Ground     *Ground
	Dir        string // of configuration and logs
	RunDir     string
	Config     string // path of the configuration file
	ConfigHome string // XDG_CONFIG_HOME of the daemon and of its operator

	daemon *Process
}

// readyTime bounds the start of a daemon on a busy machine.
const readyTime = 60 * time.Second

// NewHost writes the configuration of a host; nothing runs yet.
func (g *Ground) NewHost(id string, s Settings) (*Host, error) {
	h := &Host{ID: id, Ground: g, Dir: filepath.Join(g.Dir, id)}
	h.RunDir, h.Config, h.ConfigHome = filepath.Join(h.Dir, "run"), filepath.Join(h.Dir, "bulkhead.toml"), filepath.Join(h.Dir, "config")
	if err := os.MkdirAll(h.ConfigHome, 0o700); err != nil {
		return nil, err
	}
	return h, os.WriteFile(h.Config, []byte(h.text(s)), 0o600)
}

func (h *Host) text(s Settings) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[host]\nid = %q\nrun_dir = %q\nlog_level = \"debug\"\noperator_addr = \"127.0.0.1:0\"\n", h.ID, h.RunDir)
	if s.Services != nil {
		quoted := make([]string, len(s.Services))
		for i, name := range s.Services {
			quoted[i] = strconv.Quote(name)
		}
		fmt.Fprintf(&b, "services = [%s]\n", strings.Join(quoted, ", "))
	}
	fmt.Fprintf(&b, "[vm]\nkernel = %q\nimage = %q\n",
		orDefault(s.Kernel, filepath.Join(h.Ground.Guest, "vmlinux")), orDefault(s.Image, filepath.Join(h.Ground.Guest, "image.ext4")))
	// Machines that come up ten at a time on a busy host take their time.
	fmt.Fprintf(&b, "boot_timeout = \"3m\"\n")
	if s.Hypervisor != "" {
		fmt.Fprintf(&b, "hypervisor = %q\n", s.Hypervisor)
	}
	if s.QEMU != "" {
		fmt.Fprintf(&b, "qemu = %q\n", s.QEMU)
	}
	if s.MaxVMs != 0 {
		fmt.Fprintf(&b, "max_vms = %d\n", s.MaxVMs)
	}
	if s.Budget != 0 {
		fmt.Fprintf(&b, "memory_budget_mib = %d\n", s.Budget)
	}
	if s.Boot {
		fmt.Fprintf(&b, "templates = false\n")
	}
	if s.NoPool {
		fmt.Fprintf(&b, "pool = 0\n")
	}
	// The kernel's merging is one for all daemons of a host, which run beside each other here.
	fmt.Fprintf(&b, "[ksm]\nmode = %q\n", orDefault(s.KSM, "observe"))
	return b.String()
}

func orDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// Start starts the daemon and waits until it serves.
func (h *Host) Start(ctx context.Context) error {
	daemon, err := h.StartService(ctx, "bulkheadd")
	if err != nil {
		return err
	}
	h.daemon = daemon
	return nil
}

// StartService starts a daemon of the product with this host's configuration.
func (h *Host) StartService(ctx context.Context, binary string) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	return StartProcess(ctx, h.Dir, binary, h.env(), h.Binary(binary), "--config", h.Config)
}

// Kill ends the daemon with SIGKILL.
func (h *Host) Kill() error { return h.daemon.Kill() }

// Daemon is the running bulkheadd.
func (h *Host) Daemon() *Process { return h.daemon }

// Stop ends the daemon as systemd would and reports what it left in its
// directories. VMs outlive it by design, so tests remove their containers first.
func (h *Host) Stop() error {
	if h.daemon == nil {
		return nil
	}
	err := h.daemon.Stop()
	h.daemon = nil
	return errors.Join(err, h.leftFiles())
}

// Log is the daemon's log.
func (h *Host) Log() string { return filepath.Join(h.Dir, "bulkheadd.log") }

// Binary is the path of a binary under test.
func (h *Host) Binary(name string) string { return filepath.Join(h.Ground.Bin, name) }

// Dial connects to the bus as a local program does.
func (h *Host) Dial(ctx context.Context) (*bus.Conn, error) {
	return bus.Dial(ctx, h.RunDir, "e2e")
}

func (h *Host) env() []string { return []string{"XDG_CONFIG_HOME=" + h.ConfigHome} }
