// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// mountLabel is the label of the container's files.
func mountLabel(spec *specs.Spec) string {
	if spec.Linux == nil {
		return ""
	}
	return spec.Linux.MountLabel
}

// checkLabels refuses SELinux labels that the guest cannot give (OCI runtime-spec v1.3, config.md#linux-process and
// config-linux.md#mount-label). libcontainer applies them: to the process when it executes the program, to the
// file systems that it mounts for the container.
func checkLabels(spec *specs.Spec, known func(string) bool) error {
	if err := checkLabel("linux.mountLabel", mountLabel(spec), known); err != nil {
		return err
	}
	if spec.Process == nil {
		return nil
	}
	return checkLabel("process.selinuxLabel", spec.Process.SelinuxLabel, known)
}

func checkLabel(property, label string, known func(string) bool) error {
	switch {
	case label == "":
		return nil
	case known == nil:
		return fmt.Errorf("%w: %s %q: this virtual machine was started without SELinux, as its first container asked for no label", ErrInvalid, property, label)
	case !known(label):
		return fmt.Errorf("%w: %s %q is not in the guest's SELinux policy", ErrInvalid, property, label)
	}
	return nil
}
