// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	maxHostID = 63
	// maxRunDir keeps <run_dir>/vm/<sandbox>/ctl.sock within the 108 bytes of a
	// unix socket's path.
	maxRunDir = 40
)

var (
	hostIDPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	logLevels     = []string{"trace", "debug", "info", "warn", "error", "off"}
	serviceNames  = []string{"vm", "net", "ksm"}
	classPattern  = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,63}$`)
	hypervisors   = []string{"qemu-q35", "fake"}
	ksmModes      = []string{"auto", "throttle", "observe", "off"}
	accelerators  = []string{"auto", "kvm", "tcg"}
	models        = []string{"tc", "macvtap", "bridge", "none"}
)

// Validate checks the values; all that is wrong is said at once.
func (c *Config) Validate() error {
	return errors.Join(slices.Concat(c.Host.problems(), c.VM.problems(), c.Network.problems(), c.KSM.problems())...)
}

func (h *Host) problems() []error {
	var bad problems
	if len(h.ID) > maxHostID || !hostIDPattern.MatchString(h.ID) {
		bad.add("[host] id %q must be 1 to %d characters of A-Z a-z 0-9 _ -", h.ID, maxHostID)
	}
	if !filepath.IsAbs(h.RunDir) || filepath.Clean(h.RunDir) != h.RunDir || h.RunDir == "/" {
		bad.add("[host] run_dir %q must be an absolute, clean path of a directory of its own", h.RunDir)
	} else if len(h.RunDir) > maxRunDir {
		bad.add("[host] run_dir %q is %d bytes long; unix sockets below it leave room for %d", h.RunDir, len(h.RunDir), maxRunDir)
	}
	bad.oneOf("[host] log_level", h.LogLevel, logLevels)
	if err := loopback(h.OperatorAddr); err != nil {
		bad.add("[host] operator_addr %q %w", h.OperatorAddr, err)
	}
	for i, name := range h.Services {
		bad.oneOf("[host] services", name, serviceNames)
		if slices.Contains(h.Services[:i], name) {
			bad.add("[host] services names %q twice", name)
		}
	}
	return bad
}

func (v *VM) problems() []error {
	var bad problems
	bad.oneOf("[vm] hypervisor", v.Hypervisor, hypervisors)
	bad.oneOf("[vm] accelerator", v.Accelerator, accelerators)
	for _, file := range []struct{ name, path string }{{"qemu", v.QEMU}, {"kernel", v.Kernel}, {"image", v.Image}} {
		if !filepath.IsAbs(file.path) {
			bad.add("[vm] %s %q must be an absolute path", file.name, file.path)
		}
	}
	bad.between("[vm] memory_mib", v.MemoryMiB, 64, 1<<20)
	bad.between("[vm] overhead_mib", v.OverheadMiB, 0, 1<<16)
	bad.between("[vm] base_memory_mib", v.BaseMemoryMiB, 96, 1<<16)
	bad.between("[vm] memory_budget_mib", v.MemoryBudgetMiB, 0, 1<<30)
	bad.between("[vm] vcpus", v.VCPUs, 1, 255)
	bad.between("[vm] max_vms", v.MaxVMs, 1, 1<<16)
	if !classPattern.MatchString(v.MergeClass) {
		bad.add("[vm] merge_class %q must be the name of a trust class, at most 63 characters of A-Z a-z 0-9 _ . -, or empty", v.MergeClass)
	}
	bad.between("[vm] pool", v.Pool, 0, 1<<10)
	if v.Pool > 0 && !v.Templates {
		bad.add("[vm] pool %d needs templates = true: its VMs continue from a template", v.Pool)
	}
	if v.BootTimeout.Duration <= 0 {
		bad.add("[vm] boot_timeout %q must be more than nothing", v.BootTimeout)
	}
	return bad
}

func (n *Network) problems() []error {
	var bad problems
	bad.oneOf("[network] model", n.Model, models)
	bad.between("[network] queues", n.Queues, 1, 256)
	return bad
}

func (k *KSM) problems() []error {
	var bad problems
	bad.oneOf("[ksm] mode", k.Mode, ksmModes)
	bad.between("[ksm] max_cpu_percent", k.MaxCPUPercent, 1, 100)
	return bad
}

// loopback refuses what other machines could reach: the operator's credential
// travels in the clear.
func loopback(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.New(`must be an address and a port, such as "127.0.0.1:4222"`)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return errors.New("must be a loopback address such as 127.0.0.1 or [::1]")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return errors.New("must have a port of 0 to 65535")
	}
	return nil
}

type problems []error

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

func (p *problems) oneOf(option, value string, allowed []string) {
	if !slices.Contains(allowed, value) {
		p.add("%s %q must be one of %s", option, value, strings.Join(allowed, ", "))
	}
}

func (p *problems) between(option string, value, low, high int) {
	if value < low || value > high {
		p.add("%s %d must be from %d to %d", option, value, low, high)
	}
}
