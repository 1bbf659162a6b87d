// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"bulkhead/test/conformance"
	"bulkhead/test/e2e/host"
)

// featureGroups hold what features claims against what is then carried out.
func featureGroups() []conformance.Group {
	return []conformance.Group{life("features", claimed)}
}

func claimed(o *oci) []step {
	var f features.Features
	// carried complains unless a container of a configuration can be created.
	carried := func(ctx context.Context, configure func(spec *specs.Spec, bundle string)) error {
		spec := host.NewSpec("true")
		bundle, err := o.bundle(spec)
		if err != nil {
			return err
		}
		configure(spec, bundle)
		if err := writeJSON(filepath.Join(bundle, "config.json"), spec); err != nil {
			return err
		}
		c, err := o.create(ctx, bundle)
		if err != nil {
			return err
		}
		_, err = o.do(ctx, "delete", "--force", c.id)
		return err
	}
	return []step{
		{
			name: "features.md#features/json", says: "features prints one JSON object, of properties that the specification has",
			take: func(ctx context.Context) error {
				text, err := o.do(ctx, "features")
				if err != nil {
					return err
				}
				decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
				decoder.DisallowUnknownFields()
				return decoder.Decode(&f)
			},
		},
		{
			name: "features.md#specification-version/required", says: "ociVersionMin and ociVersionMax are given, and in order",
			take: func(context.Context) error {
				low, high := f.OCIVersionMin, f.OCIVersionMax
				if !strings.HasPrefix(low, "1.") || !strings.HasPrefix(high, "1.") || low > high {
					return fmt.Errorf("they are %q and %q", low, high)
				}
				return nil
			},
		},
		{
			name: "features.md#specification-version/min-accepted", says: "ociVersionMin is accepted in config.json",
			take: func(ctx context.Context) error {
				return carried(ctx, func(spec *specs.Spec, _ string) { spec.Version = f.OCIVersionMin })
			},
		},
		{
			name: "features.md#all-that-is-claimed", says: "ociVersionMax, and in one container every hook, mount option, namespace, capability and every action, operator, architecture and flag of seccomp that is claimed, are accepted",
			take: func(ctx context.Context) error {
				return carried(ctx, func(spec *specs.Spec, bundle string) { claimAll(spec, bundle, &f) })
			},
			declared: lenient("claims the mount option defaults and hands it to the file system, which refuses it"),
		},
		{
			name: "features.md#mount-options/required-ones", says: "the options that config.md marks MUST are claimed",
			take: func(context.Context) error {
				var missing []string
				for _, option := range slices.Concat(optionsMustHave, optionDefaults) {
					if !slices.Contains(f.MountOptions, option.name) {
						missing = append(missing, option.name)
					}
				}
				if len(missing) > 0 {
					return fmt.Errorf("these are not: %q", missing)
				}
				return nil
			},
		},
		{
			name: "features.md#hooks/all", says: "all six kinds of hooks are claimed",
			take: func(context.Context) error {
				return equalList("hooks", f.Hooks, []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"})
			},
		},
		{
			name: "features-linux.md#present", says: "the properties of Linux are there, which containerd reads without asking",
			take: func(context.Context) error {
				if f.Linux == nil || f.Linux.Seccomp == nil || f.Linux.Cgroup == nil {
					return errors.New("linux, linux.seccomp or linux.cgroup is missing")
				}
				return nil
			},
		},
	}
}

// claimAll asks for all that a runtime claims.
func claimAll(spec *specs.Spec, bundle string, f *features.Features) {
	spec.Version = f.OCIVersionMax
	hooks := &specs.Hooks{}
	for name, list := range map[string]*[]specs.Hook{
		"prestart": &hooks.Prestart, "createRuntime": &hooks.CreateRuntime, "createContainer": &hooks.CreateContainer,
		"startContainer": &hooks.StartContainer, "poststart": &hooks.Poststart, "poststop": &hooks.Poststop,
	} {
		if slices.Contains(f.Hooks, name) {
			*list = []specs.Hook{{Path: "/bin/true", Args: []string{"true"}}}
		}
	}
	spec.Hooks = hooks
	for _, option := range f.MountOptions {
		m := specs.Mount{Destination: "/claimed/" + option, Type: "tmpfs", Source: "tmpfs", Options: []string{option}}
		switch option {
		case "remount": // of what was mounted before
			m.Destination = "/claimed/again"
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs"})
		case "idmap", "ridmap": // need mappings, and a file system that can
			continue
		case "bind", "rbind", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable":
			m.Type, m.Source = "bind", filepath.Join(bundle, "rootfs/home")
			if option != "bind" {
				m.Options = []string{"rbind", option}
			}
		}
		spec.Mounts = append(spec.Mounts, m)
	}
	if f.Linux == nil {
		return
	}
	// The namespaces that have no further conditions; user and time are asked elsewhere.
	if slices.Contains(f.Linux.Namespaces, "cgroup") {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	all := f.Linux.Capabilities
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	if f.Linux.Seccomp == nil {
		return
	}
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for _, arch := range f.Linux.Seccomp.Archs {
		if strings.HasPrefix(arch, "SCMP_ARCH_X") { // one filter holds either big or little endian architectures
			s.Architectures = append(s.Architectures, specs.Arch(arch))
		}
	}
	for _, flag := range f.Linux.Seccomp.SupportedFlags {
		s.Flags = append(s.Flags, specs.LinuxSeccompFlag(flag))
	}
	// A system call that nothing makes on the way to the program, with each action and operator.
	for i, action := range f.Linux.Seccomp.Actions {
		if specs.LinuxSeccompAction(action) != specs.ActNotify && specs.LinuxSeccompAction(action) != s.DefaultAction { // the first needs a listener
			s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{"bpf"}, Action: specs.LinuxSeccompAction(action), Args: []specs.LinuxSeccompArg{{Index: 0, Value: uint64(900 + i), Op: specs.OpEqualTo}}})
		}
	}
	for i, operator := range f.Linux.Seccomp.Operators {
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{"kexec_load"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 1, Value: uint64(900 + i), ValueTwo: 900, Op: specs.LinuxSeccompOperator(operator)}}})
	}
	spec.Linux.Seccomp = s
}
