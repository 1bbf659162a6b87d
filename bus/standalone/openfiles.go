// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// openFiles is the limit of open files that is asked for, as a service manager gives it by LimitNOFILE; a shell does not.
	openFiles = 1 << 20
	// filesBeside is what a process needs beside those of its VMs.
	filesBeside = 500
)

// AllowFiles is for a program that holds that many files open of each VM: it may then open those of all VMs that
// are allowed, or says that it may not. Who holds none needs no such limit.
func (e Env) AllowFiles(ofVM int) {
	if err := allowFiles(e.Config.VM.MaxVMs, ofVM); err != nil {
		e.Log.Warn("fewer VMs than are allowed find room", "error", err)
	}
}

// allowFiles raises the limit of open files to what any number of VMs takes. Where it may not, that is an
// error if the limit is too low for so many VMs.
func allowFiles(vms, ofVM int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	want := uint64(openFiles)
	if text, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		if most, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil {
			want = min(want, most) // the kernel gives nobody more
		}
	}
	if limit.Cur >= want {
		return nil
	}
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: max(want, limit.Max)})
	if need := uint64(ofVM*vms + filesBeside); err != nil && limit.Max < need {
		return fmt.Errorf("at most %d files can be open, and %d VMs need %d: raise the hard limit (ulimit -Hn, LimitNOFILE=) or lower [vm] max_vms", limit.Max, vms, need)
	}
	return nil
}
