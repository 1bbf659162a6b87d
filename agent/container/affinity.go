// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// checkAffinity refuses processors that the guest lacks, by name: the kernel's word for it would be "invalid argument".
// The numbers are those of the virtual machine, where the process runs.
func checkAffinity(a *configs.CPUAffinity) error {
	if a == nil {
		return nil
	}
	// The agent may run on all of them.
	var online unix.CPUSet
	if err := unix.SchedGetaffinity(0, &online); err != nil {
		return fmt.Errorf("reading the guest's processors: %w", err)
	}
	for _, asked := range []struct {
		name string
		set  *unix.CPUSet
	}{{"initial", a.Initial}, {"final", a.Final}} {
		if asked.set != nil && !overlap(asked.set, &online) {
			return fmt.Errorf("%w: process.execCPUAffinity.%s names none of the %d processors of the virtual machine", ErrInvalid, asked.name, online.Count())
		}
	}
	return nil
}

func overlap(a, b *unix.CPUSet) bool {
	for i := range len(a) * 64 {
		if a.IsSet(i) && b.IsSet(i) {
			return true
		}
	}
	return false
}
