// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package reaper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfoPid reads si_pid, which x/sys does not name: after si_signo, si_errno
// and si_code comes the union, aligned to 8 bytes, with the pid first
// (asm-generic/siginfo.h, _sigchld).
func siginfoPid(info *unix.Siginfo) int {
	if info.Signo == 0 {
		return 0
	}
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}

// startTime is field 22 of /proc/<pid>/stat: clock ticks since boot at the start of
// the process. The name in field 2 may hold anything, so fields count from its last ')'.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return 0, errors.New("process status without a name")
	}
	fields := bytes.Fields(data[end+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("process status with %d fields after the name", len(fields))
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
