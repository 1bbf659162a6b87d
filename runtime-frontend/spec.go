// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"bulkhead/runtime-frontend/bundle"
)

var specCommand = command{
	name: "spec", usage: "write a config.json to start from", maxArgs: 0,
	description: "Writes a config.json that runs \"sh\" of the directory rootfs beside it.",
	flags: func() []cli.Flag {
		return []cli.Flag{
			&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "`DIR` of the bundle (default: the working directory)"},
			&cli.BoolFlag{Name: "rootless", Usage: "with a user namespace in which root is the caller, and without limits"},
		}
	},
	run: func(_ context.Context, inv *invocation) error {
		spec := exampleSpec()
		if inv.Bool("rootless") {
			withoutRoot(spec)
		}
		return writeSpec(spec, inv.String("bundle"))
	},
}

func writeSpec(spec *specs.Spec, dir string) error {
	text, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return fmt.Errorf("writing a configuration: %w", err)
	}
	path := filepath.Join(dir, bundle.ConfigName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("file %s exists: remove it first", path)
	}
	if err != nil {
		return fmt.Errorf("writing a configuration: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// exampleSpec is runc's example, with the mounts and namespaces that suit a VM.
func exampleSpec() *specs.Spec {
	capabilities := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	noDevices := []string{"nosuid", "noexec", "nodev"}
	return &specs.Spec{
		Version:  bundle.VersionMax,
		Hostname: "bulkhead",
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Terminal:        true,
			Args:            []string{"sh"},
			Env:             []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"},
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: capabilities, Permitted: capabilities, Effective: capabilities},
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=65536k"}, noDevices...)},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: noDevices},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, noDevices...)},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"relatime", "ro"}, noDevices...)},
		},
		Linux: &specs.Linux{
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
			},
		},
	}
}

// withoutRoot makes the configuration that of a container whose root is the
// caller, as runc does it for callers that are not root; but the network namespace
// stays, as a virtual machine cannot be in the host's. The command line itself
// needs root, whoever runs in the container.
func withoutRoot(spec *specs.Spec) {
	linux := spec.Linux
	linux.Resources = nil
	linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	linux.UIDMappings = []specs.LinuxIDMapping{{HostID: uint32(os.Geteuid()), Size: 1}}
	linux.GIDMappings = []specs.LinuxIDMapping{{HostID: uint32(os.Getegid()), Size: 1}}
	for i := range spec.Mounts { // of groups that are not mapped
		spec.Mounts[i].Options = slices.DeleteFunc(spec.Mounts[i].Options, func(o string) bool { return strings.HasPrefix(o, "gid=") })
	}
}
