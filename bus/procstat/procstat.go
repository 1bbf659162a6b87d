// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package procstat reads what the kernel tells of a process in /proc/PID/stat (proc_pid_stat(5)).
//
// It imports nothing of ours. The invariant to remember: a pid alone names nobody for long; with the
// time that the process started it names one process until the next boot.
package procstat

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Tick is the unit of processor time: USER_HZ is 100 on every Linux.
const Tick = 10 * time.Millisecond

// kernelThread is PF_KTHREAD of the kernel's include/linux/sched.h.
const kernelThread = 0x00200000

// Stat is what is used of it.
type Stat struct {
	Name  string // of the program's first thread, which may call itself anything
	State string // "Z": its first thread has ended
	// Kernel tells that it is a thread of the kernel. The name of such a one is whole since Linux 5.17, before that 15 bytes.
	Kernel bool
	CPU    time.Duration
	Start  uint64 // field 22: when it started, in ticks since the boot
}

// Read reads it below proc, which is /proc but in tests. A process that is gone is fs.ErrNotExist or ESRCH.
func Read(proc string, pid int) (s Stat, err error) {
	file := filepath.Join(proc, strconv.Itoa(pid), "stat")
	raw, err := os.ReadFile(file)
	if err != nil {
		return s, err
	}
	// The name in parentheses may hold parentheses and blanks; what follows the last one is fields 3 and on.
	text := string(raw)
	open, shut := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || shut < open {
		return s, fmt.Errorf("%s has no name", file)
	}
	fields := strings.Fields(text[shut+1:])
	if len(fields) < 20 {
		return s, fmt.Errorf("%s is cut short", file)
	}
	flags, err0 := strconv.ParseUint(fields[6], 10, 64)
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	start, err3 := strconv.ParseUint(fields[19], 10, 64)
	if err := errors.Join(err0, err1, err2, err3); err != nil {
		return s, fmt.Errorf("%s: %w", file, err)
	}
	return Stat{
		Name: text[open+1 : shut], State: fields[0], Kernel: flags&kernelThread != 0,
		CPU: time.Duration(user+system) * Tick, Start: start,
	}, nil
}
