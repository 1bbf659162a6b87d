// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command init is the PID 1 of the boot test: it reports what the guest kernel gives an agent, as "key value" lines on the
// virtio-serial port named org.bulkhead.boot-test, and powers the guest off.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const portName = "org.bulkhead.boot-test"

func main() {
	booted := uptime()
	mountErr := mountKernelFilesystems()

	out := io.Writer(os.Stdout)
	if port, err := openPort(portName); err == nil {
		out = port
	} else {
		fmt.Println("port:", err)
	}
	report(out, "uptime", fmt.Sprintf("%.3f", booted.Seconds()))
	if mountErr != nil {
		report(out, "error", mountErr.Error())
	}
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err == nil {
		report(out, "freeram", fmt.Sprint(info.Freeram*uint64(info.Unit)))
	}
	for _, file := range []string{
		"/proc/sys/kernel/osrelease", "/proc/mounts", "/proc/filesystems", "/proc/cgroups", "/proc/net/protocols",
		"/sys/class/misc/hw_random/rng_current",
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			report(out, "error", err.Error())
			continue
		}
		report(out, file, string(data))
	}
	for _, pattern := range []string{"/proc/self/ns/*", "/dev/*", "/sys/fs/cgroup/*", "/sys/bus/acpi/drivers/vmgenid/*:*"} {
		names, _ := filepath.Glob(pattern)
		report(out, pattern, strings.Join(names, "\n"))
	}
	if err := os.WriteFile("/written", nil, 0o600); err != nil {
		report(out, "write", err.Error())
	} else {
		report(out, "write", "ok")
	}
	report(out, "done", "done")
	if f, ok := out.(*os.File); ok {
		_ = f.Sync()
	}
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

// uptime reads CLOCK_BOOTTIME (7), which counts from the kernel's start and needs no /proc.
func uptime() time.Duration {
	var now syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 7, uintptr(unsafe.Pointer(&now)), 0)
	if errno != 0 {
		return 0
	}
	return time.Duration(now.Nano())
}

func mountKernelFilesystems() error {
	for _, m := range []struct{ kind, target string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"cgroup2", "/sys/fs/cgroup"}, {"tmpfs", "/run"}, {"mqueue", "/tmp"},
	} {
		if err := syscall.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	return nil
}

// openPort finds the port by the name QEMU gave it; there is no udev to make /dev/virtio-ports.
func openPort(name string) (*os.File, error) {
	ports, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, p := range ports {
		got, err := os.ReadFile(p)
		if err == nil && strings.TrimSpace(string(got)) == name {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(p))), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("no virtio port is named %s (found %v)", name, ports)
}

// report writes one line per line of value, each under key.
func report(w io.Writer, key, value string) {
	for _, line := range strings.Split(strings.TrimSpace(value), "\n") {
		fmt.Fprintf(w, "%s\t%s\n", key, line)
	}
}
