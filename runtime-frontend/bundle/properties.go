// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// verdict is what becomes of one property. An empty reason means that it is
// carried out, with everything below it.
type verdict struct {
	reason string
	// asks tells whether a value asks for what cannot be had; nil is "any value does".
	asks func(reflect.Value) bool
}

var (
	carried = verdict{}
	// checked properties have rules of their own in the file that is named for them.
	checked = verdict{}
)

func refused(reason string) verdict { return verdict{reason: reason} }

func refusedIf(asks func(reflect.Value) bool, reason string) verdict {
	return verdict{reason: reason, asks: asks}
}

// The reasons that several properties share.
const (
	noOtherPlatform = "it belongs to another platform than Linux"
	noAppArmor      = "the virtual machine's kernel has no AppArmor: the machine is the confinement, and SELinux labels confine within it"
)

// properties holds the verdict for every property of the runtime-spec 1.3.0.
// A path is written with the JSON names; "[]" stands for the elements of an array and "{}" for those of an object with free keys.
// A property that is absent here is one whose own properties have the verdicts.
var properties = map[string]verdict{
	"ociVersion":  checked, // version.go
	"hostname":    carried,
	"domainname":  carried,
	"annotations": checked, // bundle.go

	"root.path":     checked, // bundle.go
	"root.readonly": carried,

	"mounts[].destination": checked, // mounts.go
	"mounts[].type":        checked,
	"mounts[].source":      checked,
	"mounts[].options":     checked,
	"mounts[].uidMappings": checked,
	"mounts[].gidMappings": checked,

	"process.terminal":            carried,
	"process.consoleSize":         checked, // process.go
	"process.user.uid":            carried,
	"process.user.gid":            carried,
	"process.user.umask":          checked, // process.go
	"process.user.additionalGids": carried,
	"process.user.username":       refused(noOtherPlatform),
	"process.args":                checked, // process.go
	"process.commandLine":         refused(noOtherPlatform),
	"process.env":                 checked,
	"process.cwd":                 checked,
	"process.capabilities":        carried,
	"process.rlimits":             checked,
	"process.noNewPrivileges":     carried,
	"process.apparmorProfile":     refusedIf(foreignAppArmorProfile, "AppArmor profile: "+noAppArmor+"; use --security-opt apparmor=unconfined"),
	"process.oomScoreAdj":         checked,
	"process.scheduler":           checked, // scheduling.go
	"process.selinuxLabel":        checked, // selinux.go
	"process.ioPriority":          checked, // scheduling.go
	"process.execCPUAffinity":     checked,

	"hooks.prestart":        checked, // hooks.go
	"hooks.createRuntime":   checked,
	"hooks.createContainer": checked,
	"hooks.startContainer":  checked,
	"hooks.poststart":       checked,
	"hooks.poststop":        checked,

	"linux.uidMappings":        checked, // namespaces.go
	"linux.gidMappings":        checked,
	"linux.sysctl":             carried,
	"linux.cgroupsPath":        checked, // linux.go
	"linux.namespaces":         checked, // namespaces.go
	"linux.devices":            checked, // devices.go
	"linux.netDevices":         refused("moving the host's network devices into a virtual machine is not supported"),
	"linux.rootfsPropagation":  checked, // mounts.go
	"linux.maskedPaths":        carried,
	"linux.readonlyPaths":      carried,
	"linux.mountLabel":         checked, // selinux.go
	"linux.intelRdt":           refused("cache and memory bandwidth allocation is the host processor's and is not passed into virtual machines"),
	"linux.memoryPolicy":       refused("the virtual machine has one memory node, so there is no policy to choose"),
	"linux.personality.domain": checked, // scheduling.go
	"linux.personality.flags":  refused("the specification defines no flag"),
	"linux.timeOffsets":        checked, // namespaces.go

	"linux.seccomp.defaultAction":    checked, // seccomp.go
	"linux.seccomp.defaultErrnoRet":  checked,
	"linux.seccomp.architectures":    checked,
	"linux.seccomp.flags":            checked,
	"linux.seccomp.listenerPath":     refused(noSeccompNotify),
	"linux.seccomp.listenerMetadata": refused(noSeccompNotify),
	"linux.seccomp.syscalls":         checked,

	"linux.resources.devices":                        carried,
	"linux.resources.memory.limit":                   carried,
	"linux.resources.memory.reservation":             carried,
	"linux.resources.memory.swap":                    carried,
	"linux.resources.memory.kernel":                  refusedIf(positive, "cgroup v2, which the virtual machine uses, has no limit for kernel memory alone"),
	"linux.resources.memory.kernelTCP":               refusedIf(positive, "cgroup v2, which the virtual machine uses, has no limit for TCP memory alone"),
	"linux.resources.memory.swappiness":              refusedIf(swappinessSet, "the virtual machine has no swap, so there is no swappiness to set"),
	"linux.resources.memory.disableOOMKiller":        refused("cgroup v2, which the virtual machine uses, cannot disable the OOM killer"),
	"linux.resources.memory.useHierarchy":            refusedIf(setFalse, "cgroup v2, which the virtual machine uses, always counts in hierarchy"),
	"linux.resources.memory.checkBeforeUpdate":       carried,
	"linux.resources.cpu.shares":                     carried,
	"linux.resources.cpu.quota":                      carried,
	"linux.resources.cpu.burst":                      carried,
	"linux.resources.cpu.period":                     carried,
	"linux.resources.cpu.realtimeRuntime":            refusedIf(positive, "cgroup v2, which the virtual machine uses, has no real-time budget"),
	"linux.resources.cpu.realtimePeriod":             refusedIf(positive, "cgroup v2, which the virtual machine uses, has no real-time budget"),
	"linux.resources.cpu.cpus":                       carried,
	"linux.resources.cpu.mems":                       carried,
	"linux.resources.cpu.idle":                       carried,
	"linux.resources.pids":                           carried,
	"linux.resources.blockIO.weight":                 carried,
	"linux.resources.blockIO.leafWeight":             refused("kernels since 5.0 have no leaf weights"),
	"linux.resources.blockIO.weightDevice":           checked,
	"linux.resources.blockIO.throttleReadBpsDevice":  checked,
	"linux.resources.blockIO.throttleWriteBpsDevice": checked,

	"linux.resources.blockIO.throttleReadIOPSDevice":  checked,
	"linux.resources.blockIO.throttleWriteIOPSDevice": checked,
	"linux.resources.hugepageLimits":                  refusedIf(foreignHugepages, "the virtual machine has huge pages of 2MB and 1GB only"),
	"linux.resources.network":                         refusedIf(anyField, "cgroup v2, which the virtual machine uses, has no network classes or priorities"),
	"linux.resources.rdma":                            refused("the virtual machine has no RDMA devices"),
	"linux.resources.unified":                         refusedIf(foreignUnified, "a name must be CONTROLLER.SETTING of cgroup v2, with one of the controllers "+strings.Join(unifiedControllers, ", ")),

	"vm":      refused("the virtual machine is chosen by the host's configuration, not by the bundle"),
	"solaris": refused(noOtherPlatform),
	"windows": refused(noOtherPlatform),
	"zos":     refused(noOtherPlatform),
	"freebsd": refused(noOtherPlatform),
}

// engineAppArmorProfiles are what engines ask for by default wherever the host
// has AppArmor. They keep a process from the host's kernel interfaces, which a process in a virtual machine
// cannot reach at all; refusing them would refuse every container on such a host.
// A profile that somebody chose is refused.
var engineAppArmorProfiles = []string{"docker-default", "cri-containerd.apparmor.d", "crio-default", "unconfined"}

func foreignAppArmorProfile(v reflect.Value) bool {
	name := v.String()
	return name != "" && !slices.Contains(engineAppArmorProfiles, name) &&
		!strings.HasPrefix(name, "containers-default-") && // podman, followed by its version
		!strings.HasPrefix(name, "buildkit-default")
}

func positive(v reflect.Value) bool {
	v = reflect.Indirect(v)
	switch {
	case !v.IsValid():
		return false
	case v.CanInt():
		return v.Int() > 0
	default:
		return v.Uint() > 0
	}
}

func setFalse(v reflect.Value) bool {
	v = reflect.Indirect(v)
	return v.IsValid() && !v.Bool()
}

// swappinessSet: Docker's clients write -1, which arrives as the largest
// number, for "not set".
func swappinessSet(v reflect.Value) bool {
	v = reflect.Indirect(v)
	return v.IsValid() && v.Uint() <= 100
}

// foreignHugepages lets limits of zero pass: of sizes that a guest lacks they are
// true, and the CRI plugins write one for each page size of the host.
func foreignHugepages(v reflect.Value) bool {
	for _, limit := range v.Interface().([]specs.LinuxHugepageLimit) {
		if limit.Limit > 0 && limit.Pagesize != "2MB" && limit.Pagesize != "1GB" {
			return true
		}
	}
	return false
}

// unifiedControllers are those of the guest's cgroups; of two the host holds the
// settings, as their numbers are those of its processors and devices.
var unifiedControllers = []string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}

func foreignUnified(v reflect.Value) bool {
	for name := range v.Interface().(map[string]string) {
		controller, setting, ok := strings.Cut(name, ".")
		if !ok || setting == "" || strings.Contains(name, "/") || !slices.Contains(unifiedControllers, controller) {
			return true
		}
	}
	return false
}

func anyField(v reflect.Value) bool {
	v = reflect.Indirect(v)
	if !v.IsValid() {
		return false
	}
	for i := range v.NumField() {
		if present(v.Field(i)) {
			return true
		}
	}
	return false
}

func checkProperties(spec *specs.Spec) error {
	return errors.Join(walk(reflect.ValueOf(spec).Elem(), "")...)
}

// walk holds a value against the table, from the outside in.
func walk(v reflect.Value, path string) []error {
	if decision, ok := properties[path]; ok {
		asks := decision.asks
		if asks == nil {
			asks = present
		}
		if decision.reason != "" && asks(v) {
			return []error{refuse(path, decision.reason)}
		}
		return nil
	}
	var errs []error
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			errs = walk(v.Elem(), path)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			errs = append(errs, walk(v.Field(i), childPath(path, v.Type().Field(i)))...)
		}
	case reflect.Slice:
		seen := map[string]bool{}
		for i := range v.Len() {
			for _, err := range walk(v.Index(i), path+"[]") {
				if !seen[err.Error()] { // twenty mounts with one fault are one sentence
					seen[err.Error()] = true
					errs = append(errs, err)
				}
			}
		}
	}
	return errs
}

// childPath names a field as it is written in JSON. Embedded structs have no
// name of their own there.
func childPath(path string, field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	switch {
	case name == "":
		return path
	case path == "":
		return name
	default:
		return fmt.Sprintf("%s.%s", path, name)
	}
}

// present says whether a value asks for anything: engines write empty lists,
// empty strings and zeros for what nobody asked for.
func present(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() > 0
	case reflect.Pointer:
		if v.IsNil() {
			return false
		}
		return v.Elem().Kind() == reflect.Struct || present(v.Elem())
	default:
		return !v.IsZero()
	}
}

// Carried says whether the property at a path of the table is carried out;
// features are derived from it.
func Carried(path string) bool {
	decision, ok := properties[path]
	return ok && decision.reason == ""
}
