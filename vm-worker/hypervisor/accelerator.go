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

// ResolveAccelerator turns the configured mode into an accelerator and a
// sentence that says why. The error is for mode KVM on a host where it would
// not work, and for a mode that is none.
func ResolveAccelerator(mode Accelerator) (Accelerator, string, error) {
	return Host{}.Resolve(mode)
}

// Resolve is ResolveAccelerator for the given host.
//
// That /dev/kvm opens and makes a VM proves little: a software KVM on a CPU
// without virtualization does both, and stock kernels then hang in it. The
// CPU flags decide first.
func (h Host) Resolve(mode Accelerator) (Accelerator, string, error) {
	switch mode {
	case TCG:
		return TCG, "the configuration asks for tcg; " + tcgCaveat, nil
	case Auto, KVM, "":
	default:
		return "", "", fmt.Errorf("accelerator %q is unknown: use auto, kvm or tcg", mode)
	}
	flag, problem := h.kvmUsable()
	switch {
	case problem == "" && mode == KVM:
		return KVM, "the configuration asks for kvm, and the CPU has " + flag, nil
	case problem == "":
		return KVM, "the CPU has " + flag + " and /dev/kvm makes virtual machines", nil
	case mode == KVM:
		return "", "", fmt.Errorf("the configuration asks for kvm, but %s: set accelerator to auto or tcg, or enable virtualization on this host", problem)
	}
	return TCG, problem + "; " + tcgCaveat, nil
}

// kvmUsable returns the CPU flag that makes KVM work here, or why it does not.
func (h Host) kvmUsable() (flag, problem string) {
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
		return "", fmt.Sprintf("the CPU flags in %s could not be read", h.CPUInfo)
	}
	if flag == "" && openErr == nil {
		return "", "the CPU flags show neither vmx nor svm, so guests would hang although /dev/kvm opens"
	}
	if flag == "" {
		return "", "the CPU flags show neither vmx nor svm"
	}
	if errors.Is(openErr, os.ErrNotExist) {
		return "", "the CPU has " + flag + " but there is no " + h.KVM + " (is the kvm module loaded?)"
	}
	if openErr != nil {
		return "", "the CPU has " + flag + " but " + h.KVM + " cannot be opened by this user"
	}
	if err := h.CreateVM(f); err != nil {
		return "", fmt.Sprintf("the CPU has %s but KVM refuses to make a virtual machine (%v)", flag, err)
	}
	return flag, ""
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
