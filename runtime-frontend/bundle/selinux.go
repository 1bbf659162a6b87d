// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What the policy in the guest's image has (deploy/guest/selinux), under the names that engines write. A test compares.
var (
	selinuxUsers        = []string{"system_u", "unconfined_u"}
	selinuxProcessTypes = []string{"container_t", "svirt_lxc_net_t", "container_init_t", "container_kvm_t", "container_engine_t", "spc_t"}
	selinuxFileTypes    = []string{"container_file_t", "svirt_sandbox_file_t", "container_ro_file_t", "container_share_t"}
)

// maxCategory is the policy's last, c1023.
const maxCategory = 1023

// sensitivityLevel is one end of a level: its categories, if any, alone or in ranges.
var sensitivityLevel = regexp.MustCompile(`^s0(?::(c\d{1,4}(?:[.,]c\d{1,4})*))?$`)

// checkSELinux judges the labels of a container (runtime-spec, config.md#linux-process and
// config-linux.md#mount-label).
func checkSELinux(spec *specs.Spec, opts Options) error {
	var errs []error
	if spec.Process != nil {
		errs = append(errs, checkProcessLabel(spec.Process, opts))
	}
	if spec.Linux != nil {
		errs = append(errs, checkLabel("linux.mountLabel", spec.Linux.MountLabel, "object_r", selinuxFileTypes, opts))
		if spec.Linux.MountLabel != "" {
			errs = append(errs, checkLabelledMounts(spec.Mounts))
		}
	}
	return errors.Join(errs...)
}

// oneOfAKind are file systems that a kernel has once: they have a label already, and cannot get the container's.
var oneOfAKind = []string{"securityfs", "debugfs", "tracefs"}

func checkLabelledMounts(mounts []specs.Mount) error {
	var errs []error
	for i, m := range mounts {
		if slices.Contains(oneOfAKind, m.Type) && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			errs = append(errs, refuse(fmt.Sprintf("mounts[%d].type", i), fmt.Sprintf("the kernel's one %s cannot have the label linux.mountLabel; do without one of the two", m.Type)))
		}
	}
	return errors.Join(errs...)
}

func checkProcessLabel(p *specs.Process, opts Options) error {
	return checkLabel("process.selinuxLabel", p.SelinuxLabel, "system_r", selinuxProcessTypes, opts)
}

// checkLabel reads user:role:type:level, where the level has colons of its own.
func checkLabel(property, label, role string, types []string, opts Options) error {
	if label == "" {
		return nil
	}
	if !opts.SELinux {
		return refuse(property, fmt.Sprintf("SELinux label %q: [vm] selinux = false switches labels off on this host; use --security-opt label=disable", label))
	}
	parts := strings.SplitN(label, ":", 4)
	switch {
	case len(parts) < 4:
		return refuse(property, fmt.Sprintf("SELinux label %q is not of the form user:role:type:level", label))
	case !slices.Contains(selinuxUsers, parts[0]):
		return refuse(property, fmt.Sprintf("SELinux label %q: the guest's policy has the users %s", label, strings.Join(selinuxUsers, ", ")))
	case parts[1] != role:
		return refuse(property, fmt.Sprintf("SELinux label %q: its role must be %s", label, role))
	case !slices.Contains(types, parts[2]):
		return refuse(property, fmt.Sprintf("SELinux label %q: type %q is not in the guest's policy, which has %s", label, parts[2], strings.Join(types, ", ")))
	case !validLevel(parts[3]):
		return refuse(property, fmt.Sprintf("SELinux label %q: %q is not a level such as s0:c1,c2, of the categories c0 to c%d", label, parts[3], maxCategory))
	}
	return nil
}

// validLevel reads "s0:c1,c2", or a range "s0-s0:c0.c1023".
func validLevel(text string) bool {
	low, high, isRange := strings.Cut(text, "-")
	return validEnd(low) && (!isRange || validEnd(high))
}

func validEnd(text string) bool {
	parts := sensitivityLevel.FindStringSubmatch(text)
	if parts == nil {
		return false
	}
	for _, category := range strings.FieldsFunc(parts[1], func(r rune) bool { return r == '.' || r == ',' }) {
		if n, err := strconv.Atoi(category[1:]); err != nil || n > maxCategory {
			return false
		}
	}
	return true
}
