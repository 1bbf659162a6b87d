// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package config reads the one configuration file of a host,
// /etc/bulkhead/bulkhead.toml.
//
// It imports nothing of ours. The invariant: every option that the file may hold
// is used by a service, what is not an option is refused by name, and a host
// without a file runs on the defaults.
package config

import (
	_ "embed" // for Example
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is where the file is looked for.
const DefaultPath = "/etc/bulkhead/bulkhead.toml"

// EnvPath is the environment variable that names another file.
const EnvPath = "BULKHEAD_CONFIG"

// Example is a file with every option, commented, at its default.
//
//go:embed bulkhead.toml.example
var Example string

// Config is the whole file.
type Config struct {
	Host    Host    `toml:"host"`
	VM      VM      `toml:"vm"`
	Network Network `toml:"network"`
	KSM     KSM     `toml:"ksm"`
}

// Host is the section of the daemon and its bus.
type Host struct {
	ID           string   `toml:"id"`            // first token of every subject of this host
	RunDir       string   `toml:"run_dir"`       // sockets, state and records; 0700
	LogLevel     string   `toml:"log_level"`     // trace, debug, info, warn, error or off
	Operator     bool     `toml:"operator"`      // a loopback listener for the nats CLI
	OperatorAddr string   `toml:"operator_addr"` // its address; port 0 takes a free one
	Services     []string `toml:"services"`      // run inside the daemon
}

// VM is the section of vm-worker.
type VM struct {
	Hypervisor      string   `toml:"hypervisor"`        // qemu-q35 or fake
	Accelerator     string   `toml:"accelerator"`       // auto, kvm or tcg
	QEMU            string   `toml:"qemu"`              // the QEMU binary
	Kernel          string   `toml:"kernel"`            // guest kernel
	Image           string   `toml:"image"`             // guest root image
	MemoryMiB       int      `toml:"memory_mib"`        // memory of a container without a limit
	OverheadMiB     int      `toml:"overhead_mib"`      // added for the guest's kernel and agent
	BaseMemoryMiB   int      `toml:"base_memory_mib"`   // of every VM from its start
	MemoryBudgetMiB int      `toml:"memory_budget_mib"` // that all VMs may have together; 0: what the host has
	VCPUs           int      `toml:"vcpus"`             // CPUs of a container without a quota
	BootTimeout     Duration `toml:"boot_timeout"`      // from the start of QEMU to the agent's first word
	MaxVMs          int      `toml:"max_vms"`           // more are refused
	MergeClass      string   `toml:"merge_class"`       // the one trust class whose VMs' memory the host may merge; empty: none
	Templates       bool     `toml:"templates"`         // VMs continue from a guest that was booted once
	Pool            int      `toml:"pool"`              // VMs that stand ready; without templates 0
	SELinux         bool     `toml:"selinux"`           // SELinux labels of containers are applied in the guest, else refused
}

// Network is the section of the network service: what holds for a VM whose
// request says nothing else.
type Network struct {
	Model           string `toml:"model"`            // tc, macvtap, bridge or none
	Queues          int    `toml:"queues"`           // most queue pairs of a NIC
	SpoofProtection bool   `toml:"spoof_protection"` // a VM sends with its own addresses only
	Vhost           bool   `toml:"vhost"`            // /dev/vhost-net is used where there is one
}

// KSM is the section of ksm-worker.
type KSM struct {
	Mode          string `toml:"mode"`            // auto, throttle, observe or off
	MaxCPUPercent int    `toml:"max_cpu_percent"` // most that ksmd may use of a core in mode auto
}

// Duration is a time.Duration written as "30s".
type Duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"30s\"", text)
	}
	d.Duration = v
	return nil
}

// Default is the configuration of a host without a file.
func Default() *Config {
	return &Config{
		Host: Host{
			ID:           hostID(),
			RunDir:       "/run/bulkhead",
			LogLevel:     "info",
			Operator:     true,
			OperatorAddr: "127.0.0.1:4222",
			Services:     []string{"vm", "net", "ksm"},
		},
		VM: VM{
			Hypervisor:    "qemu-q35",
			Accelerator:   "auto",
			QEMU:          "/usr/bin/qemu-system-x86_64",
			Kernel:        "/usr/share/bulkhead/vmlinux",
			Image:         "/usr/share/bulkhead/image.ext4",
			MemoryMiB:     512,
			OverheadMiB:   96,
			BaseMemoryMiB: 128,
			VCPUs:         1,
			BootTimeout:   Duration{60 * time.Second},
			MaxVMs:        1200,
			Templates:     true,
			Pool:          1,
			MergeClass:    "default",
			SELinux:       true,
		},
		Network: Network{
			Model:           "tc",
			Queues:          8,
			SpoofProtection: true,
			Vhost:           true,
		},
		KSM: KSM{Mode: "auto", MaxCPUPercent: 60},
	}
}

// Load reads the file at path; "" means that of BULKHEAD_CONFIG, else
// DefaultPath. Only the default file may be absent: then the defaults hold.
func Load(path string) (*Config, error) {
	named := true
	if path == "" {
		path = os.Getenv(EnvPath)
	}
	if path == "" {
		path, named = DefaultPath, false
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return Default(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	cfg, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

// unnamed is no number that a file would hold: it tells what the file leaves out from what it says.
const unnamed = math.MinInt

// Parse reads the text of a file over the defaults and checks the values.
func Parse(text []byte) (*Config, error) {
	cfg := Default()
	pool := cfg.VM.Pool
	cfg.VM.Pool = unnamed
	d := toml.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(cfg); err != nil {
		return nil, explain(err)
	}
	if cfg.VM.Pool == unnamed {
		cfg.VM.Pool = pool
		if !cfg.VM.Templates {
			cfg.VM.Pool = 0 // who turns templates off need not know what else depends on them
		}
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// hostID makes an id of the host's name: the characters that a subject token
// may hold without escapes, so that people can type it.
func hostID() string {
	name, err := os.Hostname()
	if err != nil {
		name = ""
	}
	id := strings.Map(func(r rune) rune {
		if r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_') {
			return r
		}
		return '-'
	}, name)
	id = strings.Trim(id[:min(len(id), maxHostID)], "-")
	if id == "" {
		return "host"
	}
	return id
}
