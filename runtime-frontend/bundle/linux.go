// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func checkLinux(spec *specs.Spec) error {
	if spec.Linux == nil {
		return refuse("linux", "it is missing, and with it the namespaces that keep the container apart from the host")
	}
	return errors.Join(
		checkNamespaces(spec.Linux),
		checkSeccomp(spec.Linux.Seccomp),
		checkPersonality(spec.Linux.Personality),
		checkDevices(spec.Linux),
		checkPropagation("linux.rootfsPropagation", spec.Linux.RootfsPropagation),
		checkGuestPaths("linux.maskedPaths", spec.Linux.MaskedPaths),
		checkGuestPaths("linux.readonlyPaths", spec.Linux.ReadonlyPaths),
	)
}

// checkPropagation: of the root file system it is a matter within the guest.
func checkPropagation(property, propagation string) error {
	switch {
	case propagation != "" && mountOptions[propagation] != propagationOption:
		return refuse(property, fmt.Sprintf("unknown propagation %q", propagation))
	case propagation == "runbindable":
		return refuse(property, `"runbindable" leaves nothing that could be bound into the root; use unbindable`)
	}
	return nil
}

func checkGuestPaths(property string, paths []string) error {
	for _, p := range paths {
		if !path.IsAbs(p) {
			return refuse(property, fmt.Sprintf("%q is not an absolute path", p))
		}
	}
	return nil
}

// checkCgroupsPath tells the two forms apart by --systemd-cgroup, as runc does.
func checkCgroupsPath(spec *specs.Spec, opts Options) error {
	if spec.Linux == nil || spec.Linux.CgroupsPath == "" {
		return nil
	}
	value := spec.Linux.CgroupsPath
	triple := strings.Count(value, ":") == 2 && !strings.Contains(value, "/")
	switch {
	case opts.SystemdCgroup && !triple:
		return refuse("linux.cgroupsPath", fmt.Sprintf("with --systemd-cgroup it must be of the form \"slice:prefix:name\", and is %q", value))
	case !opts.SystemdCgroup && triple:
		return refuse("linux.cgroupsPath", fmt.Sprintf("%q is of the form \"slice:prefix:name\", which needs --systemd-cgroup", value))
	case strings.Contains("/"+value+"/", "/../"):
		return refuse("linux.cgroupsPath", fmt.Sprintf("%q leaves its own subtree", value))
	}
	return nil
}
