// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisor

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Accelerator is how guest code is executed.
type Accelerator string

// Auto is an operator's wish; a Spec holds KVM or TCG.
const (
	Auto Accelerator = "auto"
	KVM  Accelerator = "kvm"
	TCG  Accelerator = "tcg"
)

const tcgCaveat = "TCG is for compatibility, not a security boundary"

// Host is where the choice of an accelerator looks; the zero value is this host.
type Host struct {
	CPUInfo string // default /proc/cpuinfo
	KVM     string // default /dev/kvm
	// CreateVM proves that KVM makes virtual machines; nil asks the device.
	CreateVM func(kvm *os.File) error
}

// Resolve turns the configured mode into an accelerator and a sentence that says
// why. The error is for mode KVM on a host where it would not work, and for a mode
// that is none.
//
// That /dev/kvm opens and makes a VM proves little: a software KVM on a CPU
// without virtualization does both, and stock kernels then hang in it. The
// CPU flags decide first.
func (h Host) Resolve(mode Accelerator) (Accelerator, string, error) {
	accel, reason, _, err := h.resolve(mode)
	return accel, reason, err
}

// resolve also tells whether the answer may become another one while this host runs.
func (h Host) resolve(mode Accelerator) (accel Accelerator, reason string, passing bool, err error) {
	switch mode {
	case TCG:
		return TCG, "the configuration asks for tcg; " + tcgCaveat, false, nil
	case Auto, KVM, "":
	default:
		return "", "", false, fmt.Errorf("accelerator %q is unknown: use auto, kvm or tcg", mode)
	}
	flag, problem, passing := h.kvmUsable()
	switch {
	case problem == "" && mode == KVM:
		return KVM, "the configuration asks for kvm, and the CPU has " + flag, false, nil
	case problem == "":
		return KVM, "the CPU has " + flag + " and /dev/kvm makes virtual machines", false, nil
	case mode == KVM:
		return "", "", passing, fmt.Errorf("the configuration asks for kvm, but %s: set accelerator to auto or tcg, or enable virtualization on this host", problem)
	}
	return TCG, problem + "; " + tcgCaveat, passing, nil
}

// Choice is the accelerator of a host's VMs, for as long as it cannot become another one.
type Choice struct {
	Host Host
	Mode Accelerator // what the configuration asks for

	mu      sync.Mutex // guards the rest
	settled bool
	accel   Accelerator
	reason  string
	err     error
}

// Get is Resolve, asked again only while the answer may change.
func (c *Choice) Get() (Accelerator, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.settled {
		var passing bool
		c.accel, c.reason, passing, c.err = c.Host.resolve(c.Mode)
		c.settled = !passing
	}
	return c.accel, c.reason, c.err
}

// kvmUsable returns the CPU flag that makes KVM work here, or why it does not, and
// whether that may pass: udev loads KVM's module while the services of a host start.
func (h Host) kvmUsable() (flag, problem string, passing bool) {
	if h.CPUInfo == "" {
		h.CPUInfo = "/proc/cpuinfo"
	}
	if h.KVM == "" {
		h.KVM = "/dev/kvm"
	}
	if h.CreateVM == nil {
		h.CreateVM = createVM
	}
	f, openErr := os.OpenFile(h.KVM, os.O_RDWR|unix.O_CLOEXEC, 0)
	if openErr == nil {
		defer f.Close()
	}
	flag, err := virtualizationFlag(h.CPUInfo)
	if err != nil {
		return "", fmt.Sprintf("the CPU flags in %s could not be read", h.CPUInfo), false
	}
	if flag == "" && openErr == nil {
		return "", "the CPU flags show neither vmx nor svm, so guests would hang although /dev/kvm opens", false
	}
	if flag == "" {
		return "", "the CPU flags show neither vmx nor svm", false
	}
	// Before the module is there the node may be, made by systemd for all that can be loaded.
	if errors.Is(openErr, unix.ENOENT) || errors.Is(openErr, unix.ENODEV) || errors.Is(openErr, unix.ENXIO) {
		return "", "the CPU has " + flag + " but there is no device at " + h.KVM + " (is the kvm module loaded?)", true
	}
	if openErr != nil {
		return "", "the CPU has " + flag + " but " + h.KVM + " cannot be opened by this user", false
	}
	if err := h.CreateVM(f); err != nil {
		return "", fmt.Sprintf("the CPU has %s but KVM refuses to make a virtual machine (%v)", flag, err), false
	}
	return flag, "", false
}

// virtualizationFlag returns vmx or svm when the first CPU has it.
func virtualizationFlag(cpuinfo string) (string, error) {
	f, err := os.Open(cpuinfo)
	if err != nil {
		return "", fmt.Errorf("reading the CPU flags: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		flags := strings.Fields(value)
		for _, want := range []string{"vmx", "svm"} {
			if slices.Contains(flags, want) {
				return want, nil
			}
		}
		return "", nil
	}
	return "", lines.Err()
}

// kvmCreateVM is KVM_CREATE_VM, kernel Documentation/virt/kvm/api.rst.
const kvmCreateVM = 0xae01

func createVM(kvm *os.File) error {
	fd, err := unix.IoctlRetInt(int(kvm.Fd()), kvmCreateVM)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
