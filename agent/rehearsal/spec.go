// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package rehearsal

import (
	_ "embed"
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// seccompProfile has the shape and the size of the profile that Docker gives every container.
//
//go:embed seccomp.json
var seccompProfile json.RawMessage

const hostsFile = "/etc/hosts"

var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// spec is the configuration that Docker writes for a container of which nothing special is asked.
func spec(path string, terminal bool) (*specs.Spec, error) {
	s := &specs.Spec{
		Version: "1.2.0", Process: program(path, terminal), Root: &specs.Root{Path: "/"}, Hostname: name,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
			{Destination: hostsFile, Type: "bind", Source: hostsFile, Options: []string{"rbind", "rprivate"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/docker/" + name,
			Namespaces: []specs.LinuxNamespace{
				{Type: "mount"}, {Type: "network", Path: "/proc/1/ns/net"}, {Type: "uts"}, {Type: "pid"}, {Type: "ipc"}, {Type: "cgroup"},
			},
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				Memory:  &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{Shares: new(uint64)}, BlockIO: &specs.LinuxBlockIO{Weight: new(uint16)},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	if terminal { // as containerd and Podman have it
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 20, Soft: 1 << 20}}
	}
	if err := json.Unmarshal(seccompProfile, &s.Linux.Seccomp); err != nil {
		return nil, fmt.Errorf("reading the filter of the rehearsal: %w", err)
	}
	return s, nil
}
