// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const processorDir = "/sys/devices/system/cpu"

// onlineTries is how often a processor is asked to come up. The kernel itself
// gives it ten seconds each time.
const onlineTries = 3

// SetProcessors makes the guest run on its first n processors, and returns when
// programs see exactly these. It waits until the hypervisor has added them,
// brings up those that are not, also one that missed its moment while a busy
// host let the kernel boot, and takes the others offline.
func SetProcessors(ctx context.Context, n int) error {
	if n < 1 {
		return fmt.Errorf("a guest cannot run on %d processors", n)
	}
	present, err := awaitProcessors(ctx, processorDir, n)
	if err != nil {
		return err
	}
	changed := false
	for cpu := range present {
		did, err := setOnline(processorDir, cpu, cpu < n)
		if err != nil {
			return err
		}
		changed = changed || did
	}
	if !changed {
		return nil
	}
	return settleCpusets()
}

// awaitProcessors waits until n processors are there, online or not, and
// returns how many are.
func awaitProcessors(ctx context.Context, dir string, n int) (int, error) {
	present, err := await(ctx, func() (int, bool, error) {
		present, err := presentProcessors(dir)
		return present, present >= n, err
	})
	if err != nil {
		return 0, fmt.Errorf("waiting for %d processors, %d are there: %w", n, present, err)
	}
	return present, nil
}

// presentProcessors counts the processors that can be used, which are numbered
// without gaps. The directory of one appears after the kernel counts it as present.
func presentProcessors(dir string) (int, error) {
	for n := 0; ; n++ {
		_, err := os.Stat(filepath.Join(dir, "cpu"+strconv.Itoa(n)))
		if errors.Is(err, os.ErrNotExist) {
			return n, nil
		}
		if err != nil {
			return 0, fmt.Errorf("counting the processors: %w", err)
		}
	}
}

// setOnline brings a processor up or takes it down, and says whether it had to.
func setOnline(dir string, cpu int, online bool) (changed bool, err error) {
	file := filepath.Join(dir, "cpu"+strconv.Itoa(cpu), "online")
	now, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) && cpu == 0 {
		return false, nil // the kernel never lets it go
	}
	if err != nil {
		return false, fmt.Errorf("asking for the state of processor %d: %w", cpu, err)
	}
	want := "0"
	if online {
		want = "1"
	}
	if strings.TrimSpace(string(now)) == want {
		return false, nil
	}
	for range onlineTries {
		if err = os.WriteFile(file, []byte(want), 0); err == nil {
			return true, nil
		}
	}
	return false, fmt.Errorf("switching processor %d to online=%s: %w", cpu, want, err)
}

// settleCpusets waits until the masks of all cgroups and processes follow the
// processors, which the kernel does in the background. Any write to a cpuset
// file waits for that work (cpuset_write_resmask); this one changes nothing.
func settleCpusets() error {
	if err := os.WriteFile(filepath.Join(cgroupMount, agentCgroup, "cpuset.cpus"), []byte("\n"), 0); err != nil {
		return fmt.Errorf("waiting for the cpusets to follow the processors: %w", err)
	}
	return nil
}

// transparentHugePages is the switch of transparent huge pages
// (Documentation/admin-guide/mm/transhuge.rst).
const transparentHugePages = "/sys/kernel/mm/transparent_hugepage/enabled"

// AllowHugePages gives programs that ask for huge pages such, as on any machine:
// the kernel switches them off for good where it boots with less than 512 MiB,
// and the machine may grow beyond that. One that gets memory on demand has none: for them the kernel
// would keep free a twentieth of the machine each time that memory comes or goes (khugepaged_min_free_kbytes_update,
// mm/khugepaged.c), and reclaim and kill when that is not free.
func AllowHugePages(limit uint64, onDemand bool) error {
	const enough = 512 << 20
	what := "madvise"
	if onDemand {
		what = "never"
	} else if limit < enough {
		return nil
	}
	if err := os.WriteFile(transparentHugePages, []byte(what), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("switching transparent huge pages: %w", err)
	}
	return nil
}
