// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// parameters are the values that differ from the kernel's defaults, with the
// reasons. A container may ask for others in linux.sysctl.
var parameters = []struct{ path, value string }{
	// Namespaces and mounts come and go with each process; with several CPUs each change waits for RCU.
	{"/sys/kernel/rcu_expedited", "1"},
	// The largest number of processes is the container's pids limit, not a table of 32768.
	{"/proc/sys/kernel/pid_max", "4194304"},
	// The highest limit of open files that can be asked for is what systemd makes it on hosts, where engines run.
	{"/proc/sys/fs/nr_open", "1073741816"},
	// Search engines and databases refuse to start below 262144, and a container cannot raise it on other runtimes.
	{"/proc/sys/vm/max_map_count", "1048576"},
	// On a big host a program gets the address space it asks for and dies of its memory limit when it fills it; a small
	// VM's kernel would refuse the request, by comparing it with the VM's memory.
	{"/proc/sys/vm/overcommit_memory", "1"},
	// Otherwise a kernel thread wakes twice a second, for ever, to see whether there is something to compact.
	{"/proc/sys/vm/compaction_proactiveness", "0"},
	// Free memory goes back to the host (virtio-balloon, free page reporting) in blocks of 32 KiB, by the kernel's default of 2 MiB: what
	// the start of a container leaves free is in smaller pieces, and stays so. Each page alone would have the kernel report for ever, as
	// reporting frees some.
	{"/sys/module/page_reporting/parameters/page_reporting_order", "3"},
	{"/proc/sys/fs/inotify/max_user_instances", "8192"},
	{"/proc/sys/fs/inotify/max_user_watches", "524288"},
	// What distributions set; the kernel's own defaults are off for compatibility.
	{"/proc/sys/fs/protected_hardlinks", "1"},
	{"/proc/sys/fs/protected_symlinks", "1"},
	{"/proc/sys/kernel/dmesg_restrict", "1"},
	{"/proc/sys/kernel/kptr_restrict", "1"},
}

// openFiles is the limit of PID 1 that containers inherit when they ask for none; it is what engines run with.
const openFiles = 1 << 20

// SetParameters sets kernel parameters and the limits that children inherit.
// What this kernel lacks is skipped.
func SetParameters() error {
	for _, p := range parameters {
		err := os.WriteFile(p.path, []byte(p.value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("setting kernel parameter %s: %w", p.path, err)
		}
	}
	limits := []struct {
		name     string
		resource int
		limit    syscall.Rlimit
	}{
		{"open files", unix.RLIMIT_NOFILE, syscall.Rlimit{Cur: openFiles, Max: openFiles}},
		{"processes", unix.RLIMIT_NPROC, syscall.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}},
	}
	for _, l := range limits {
		// The wrapper of the standard library also tells os/exec that children inherit it.
		if err := syscall.Setrlimit(l.resource, &l.limit); err != nil {
			return fmt.Errorf("setting the limit of %s: %w", l.name, err)
		}
	}
	// Without the agent nobody could report why memory ran out.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		return fmt.Errorf("protecting the agent from the OOM killer: %w", err)
	}
	return nil
}

// LoopbackUp brings the loopback interface up; the kernel adds its addresses.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	defer unix.Close(fd)
	ifreq, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifreq); err != nil {
		return fmt.Errorf("reading the flags of lo: %w", err)
	}
	ifreq.SetUint16(ifreq.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifreq); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}

// CommandLine returns the value of name=value on the kernel's command line.
func CommandLine(name string) (string, error) {
	data, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", fmt.Errorf("reading the kernel's command line: %w", err)
	}
	value, ok := commandLineValue(string(data), name)
	if !ok {
		return "", fmt.Errorf("the kernel's command line has no %s=", name)
	}
	return value, nil
}

func commandLineValue(line, name string) (string, bool) {
	for _, field := range strings.Fields(line) {
		if key, value, ok := strings.Cut(field, "="); ok && key == name && value != "" {
			return value, true
		}
	}
	return "", false
}

// Release is the kernel's version, uname -r.
func Release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// Uptime is the guest's age in seconds, the time it was suspended included.
func Uptime() float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return float64(ts.Sec) + float64(ts.Nsec)/1e9
}

// Memory is the guest's memory and what of it is free, in bytes.
func Memory() (total, free uint64) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0
	}
	return info.Totalram * uint64(info.Unit), info.Freeram * uint64(info.Unit)
}
