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
		checkDevices(spec.Linux),
		checkPropagation("linux.rootfsPropagation", spec.Linux.RootfsPropagation),
		checkGuestPaths("linux.maskedPaths", spec.Linux.MaskedPaths),
		checkGuestPaths("linux.readonlyPaths", spec.Linux.ReadonlyPaths),
	)
}

// device is a character device that means the same in every kernel, so that a
// guest's serves as well as the host's.
type device struct{ major, minor int64 }

var everyKernelsDevices = map[device]string{
	{1, 3}: "/dev/null", {1, 5}: "/dev/zero", {1, 7}: "/dev/full", {1, 8}: "/dev/random", {1, 9}: "/dev/urandom",
	{5, 0}: "/dev/tty", {5, 1}: "/dev/console", {5, 2}: "/dev/ptmx",
}

// checkDevices refuses what the host's kernel alone has. A privileged container passes: engines name every device
// node of the host for it and mean all of the machine's, which is the virtual
// machine's, and the guest gives it those that it has itself.
func checkDevices(linux *specs.Linux) error {
	var errs []error
	all := allDevices(linux.Resources)
	for _, d := range linux.Devices {
		_, everywhere := everyKernelsDevices[device{d.Major, d.Minor}]
		switch {
		case !path.IsAbs(d.Path):
			errs = append(errs, refuse("linux.devices", fmt.Sprintf("path %q is not absolute", d.Path)))
		case d.Type == "p":
		case (d.Type == "c" || d.Type == "u" || d.Type == "b") && all:
		case (d.Type == "c" || d.Type == "u") && everywhere:
		case d.Type == "c" || d.Type == "u" || d.Type == "b":
			errs = append(errs, refuse("linux.devices", fmt.Sprintf("%s (%s %d:%d): the host's devices cannot be given to a virtual machine yet; do without --device",
				d.Path, d.Type, d.Major, d.Minor)))
		default:
			errs = append(errs, refuse("linux.devices", fmt.Sprintf("%s: unknown device type %q", d.Path, d.Type)))
		}
	}
	if len(errs) > 3 { // a rule short of --privileged, with every device of the host
		errs = append(errs[:3], refuse("linux.devices", fmt.Sprintf("and %d more", len(errs)-3)))
	}
	return errors.Join(errs...)
}

// allDevices says whether the container may use every device, which is how a
// privileged one looks: the last rule for all devices allows all access. The agent reads it in the same way.
func allDevices(r *specs.LinuxResources) bool {
	if r == nil {
		return false
	}
	wild := func(n *int64) bool { return n == nil || *n < 0 }
	all := false
	for _, rule := range r.Devices {
		if (rule.Type == "" || rule.Type == "a") && wild(rule.Major) && wild(rule.Minor) {
			all = rule.Allow && (rule.Access == "" || strings.Contains(rule.Access, "r") && strings.Contains(rule.Access, "w") && strings.Contains(rule.Access, "m"))
		}
	}
	return all
}

// checkPropagation: mounts made on one side of the VM's border cannot appear
// on the other, so only the kinds that promise nothing of that sort pass.
func checkPropagation(property, propagation string) error {
	switch propagation {
	case "", "private", "rprivate", "unbindable", "runbindable":
		return nil
	case "shared", "rshared", "slave", "rslave":
		return refuse(property, fmt.Sprintf("%q: mounts do not propagate between the host and a virtual machine; use rprivate", propagation))
	default:
		return refuse(property, fmt.Sprintf("unknown propagation %q", propagation))
	}
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
