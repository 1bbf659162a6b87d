// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Place puts a process into cgroups, by their files cgroup.procs, and sets its oom_score_adj if it is not nil; a host
// that refuses to lower it is obeyed. process is its name in /proc, and number what the cgroups are told: "0", the
// writer itself, needs no translation from a new PID namespace.
func Place(process, number string, cgroupProcs []string, oomScoreAdj *int) error {
	for _, name := range cgroupProcs {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(number)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return fmt.Errorf("entering a cgroup: %w", err)
		}
	}
	if oomScoreAdj == nil {
		return nil
	}
	err := os.WriteFile(filepath.Join("/proc", process, "oom_score_adj"), []byte(strconv.Itoa(*oomScoreAdj)), 0)
	// Lowering it takes CAP_SYS_RESOURCE, which hosts in containers lack.
	if err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("setting oom_score_adj to %d: %w", *oomScoreAdj, err)
	}
	return nil
}
