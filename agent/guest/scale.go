// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// scaledParameter is a kernel parameter, and the least that its numbers are to be.
type scaledParameter struct {
	path   string
	values []uint64
}

// leastThreads is an eighth of the memory in stacks, as the kernel does it (set_max_threads).
func leastThreads(limit uint64) uint64 {
	const threadStack = 16 << 10
	return max(limit/(8*threadStack), 20)
}

// scaled are the parameters of a machine that grows up to limit bytes.
func scaled(limit uint64) []scaledParameter {
	const page = 4096
	pages := limit / page
	// As the kernel does: threads in an eighth of the memory (set_max_threads), open files in a tenth
	// (files_maxfiles_init), TCP in 1/16 to 3/16 of it and a connection in 1/128 (tcp_init).
	threads := leastThreads(limit)
	tcp := [3]uint64{pages / 16 * 3 / 4, pages / 16, pages / 16 * 3 / 2}
	window := limit / 128
	return []scaledParameter{
		{"/proc/sys/kernel/threads-max", []uint64{threads}},
		{"/proc/sys/fs/file-max", []uint64{limit / 10 / 1024}},
		{"/proc/sys/fs/epoll/max_user_watches", []uint64{limit / 25 / 160}},
		{"/proc/sys/net/ipv4/tcp_mem", tcp[:]},
		{"/proc/sys/net/ipv4/udp_mem", []uint64{2 * tcp[0], 2 * tcp[1], 2 * tcp[2]}},
		{"/proc/sys/net/ipv4/tcp_wmem", []uint64{page, 16 << 10, min(window, 4<<20)}},
		{"/proc/sys/net/ipv4/tcp_rmem", []uint64{page, 128 << 10, min(window, 6<<20)}},
		{"/proc/sys/net/ipv4/tcp_max_orphans", []uint64{limit / 16 / 1024}},
		{"/proc/sys/net/ipv4/tcp_max_tw_buckets", []uint64{limit / 16 / 1024}},
		{"/proc/sys/net/netfilter/nf_conntrack_max", []uint64{min(limit/16384, 262144)}},
		{"/proc/sys/user/max_cgroup_namespaces", []uint64{threads / 2}},
		{"/proc/sys/user/max_ipc_namespaces", []uint64{threads / 2}},
		{"/proc/sys/user/max_mnt_namespaces", []uint64{threads / 2}},
		{"/proc/sys/user/max_net_namespaces", []uint64{threads / 2}},
		{"/proc/sys/user/max_pid_namespaces", []uint64{threads / 2}},
		{"/proc/sys/user/max_time_namespaces", []uint64{threads / 2}},
		{"/proc/sys/user/max_user_namespaces", []uint64{threads / 2}},
		{"/proc/sys/user/max_uts_namespaces", []uint64{threads / 2}},
	}
}

// sigpending is RLIMIT_SIGPENDING, which package syscall lacks.
const sigpending = 11

// ScaleParameters sets what the kernel derives from the memory it boots with, and would
// leave at that: the machine starts small, and grows up to limit bytes. Where the kernel's own
// value is no lower, it stays.
func ScaleParameters(limit uint64) error {
	for _, p := range scaled(limit) {
		if err := raise(p.path, p.values); err != nil {
			return err
		}
	}
	var have syscall.Rlimit
	if err := syscall.Getrlimit(sigpending, &have); err != nil {
		return fmt.Errorf("reading the limit of pending signals: %w", err)
	}
	if n := leastThreads(limit) / 2; have.Cur < n {
		if err := syscall.Setrlimit(sigpending, &syscall.Rlimit{Cur: n, Max: max(n, have.Max)}); err != nil {
			return fmt.Errorf("setting the limit of pending signals: %w", err)
		}
	}
	return nil
}

// raised is the line to write for the values, with those of the text that are higher, and
// whether that differs from the text.
func raised(text string, values []uint64) (line string, higher bool) {
	have := strings.Fields(text)
	for i, v := range values {
		if i < len(have) {
			if now, err := strconv.ParseUint(have[i], 10, 64); err != nil || now >= v {
				line += have[i] + " "
				continue
			}
		}
		line, higher = line+strconv.FormatUint(v, 10)+" ", true
	}
	return strings.TrimSpace(line), higher
}

// raise writes those of the values of a kernel parameter that are higher than what is there.
// What this kernel lacks is skipped.
func raise(path string, values []uint64) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading kernel parameter %s: %w", path, err)
	}
	line, higher := raised(string(text), values)
	if !higher {
		return nil
	}
	if err := os.WriteFile(path, []byte(line), 0); err != nil {
		return fmt.Errorf("setting kernel parameter %s: %w", path, err)
	}
	return nil
}
