// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/docker/go-units"
)

// cgroupFile reads a value of the container's own cgroup, of version 2 or 1.
func cgroupFile(v2, v1 string) string {
	return fmt.Sprintf("cat /sys/fs/cgroup/%s 2>/dev/null || cat /sys/fs/cgroup/%s", v2, v1)
}

func TestLimitsAreSeenInTheContainer(t *testing.T) {
	d := newDocker(t)
	for _, c := range []struct {
		name    string
		options []string
		script  string
		want    string
	}{
		{"memory", opts("-m", "200m"), cgroupFile("memory.max", "memory/memory.limit_in_bytes"), "209715200"},
		{"half a CPU", opts("--cpus", "0.5"), "(" + cgroupFile("cpu.max", "cpu/cpu.cfs_quota_us") + ") | cut -d' ' -f1", "50000"},
		{"two CPUs", opts("--cpus", "2"), "nproc", "2"},
		{"processes", opts("--pids-limit", "33"), cgroupFile("pids.max", "pids/pids.max"), "33"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			expect(t, "the value", dockerUser{t, d.engine}.run(c.options, "sh", "-c", c.script), c.want)
		})
	}
}

func TestUpdateReachesTheRunningContainer(t *testing.T) {
	d := newDocker(t)
	name := d.launch(opts("-m", "128m", "--cpus", "1", "--pids-limit", "50"), "sleep", "1000")
	inside := func(script string) string { return d.do("exec", name, "sh", "-c", script) }
	limits := cgroupFile("memory.max", "memory/memory.limit_in_bytes") + "; " + cgroupFile("pids.max", "pids/pids.max") + "; (" +
		cgroupFile("cpu.max", "cpu/cpu.cfs_quota_us") + ") | cut -d' ' -f1"
	expect(t, "the limits at first", inside(limits), "134217728\n50\n100000")
	booted := inside("cat /proc/sys/kernel/random/boot_id")
	d.do("update", "-m", "384m", "--memory-swap", "384m", "--cpus", "2", "--pids-limit", "60", name)
	expect(t, "the limits after an update", inside(limits), "402653184\n60\n200000")
	if !reference() { // a container of the host's kernel sees the host's memory and processors
		sees(t, inside, 384)
		expect(t, "the processors after an update", inside("nproc"), "2")
		expect(t, "the boot of its kernel", inside("cat /proc/sys/kernel/random/boot_id"), booted)
	}
	if r := d.try("exec", name, "dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"); r.Code != 0 {
		t.Errorf("a program that takes 300 of 384 MiB ended with %d: %s", r.Code, r.Stderr)
	}
	// The VM around the container may add its part.
	_, told, _ := strings.Cut(d.do("stats", "--no-stream", "--format", "{{.MemUsage}}", name), " / ")
	if got := bytesOf(t, told); got < 383<<20 || got > 3*384<<20 {
		t.Errorf("after an update to 384 MiB, docker stats tells of a limit of %s", told)
	}
	d.do("update", "-m", "256m", "--memory-swap", "256m", "--cpus", "1", "--pids-limit", "-1", name)
	expect(t, "the limits after a second update", inside(limits), "268435456\nmax\n100000")
	if !reference() {
		sees(t, inside, 256)
		expect(t, "the processors after a second update", inside("nproc"), "1")
	}
	if r := d.try("exec", name, "dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"); r.Code != 137 {
		t.Errorf("a program that takes 300 of 256 MiB ended with %d: %s", r.Code, r.Stderr)
	}
}

// sees checks the memory that a program in the container reads, by /proc and by
// sysinfo(2), to two parts in a hundred.
func sees(t *testing.T, inside func(string) string, mib int) {
	t.Helper()
	for _, way := range []string{"awk '/^MemTotal/ {print $2}' /proc/meminfo", "free -k | sed -n 's/^Mem: *\\([0-9]\\{6\\}\\).*/\\1/p'"} {
		got, err := strconv.Atoi(inside(way))
		if want := mib << 10; err != nil || got < want-want/50 || got > want+want/50 {
			t.Errorf("%s tells of %d KiB, %v, want %d", way, got, err, want)
		}
	}
}

func TestAContainerSeesItsMemoryLimitAsItsMemory(t *testing.T) {
	if reference() {
		t.Skip("a container of the host's kernel sees the host's memory")
	}
	d := newDocker(t)
	name := d.launch(opts("-m", "512m"), "sleep", "1000")
	sees(t, func(script string) string { return d.do("exec", name, "sh", "-c", script) }, 512)
}

func TestAForkBombEndsAtTheLimitOfProcesses(t *testing.T) {
	d := newDocker(t)
	r := d.tryRun(opts("--pids-limit", "20"), "sh", "-c", "for i in $(seq 40); do sleep 30 & done; echo not reached")
	if !strings.Contains(r.Stderr, "can't fork") {
		t.Errorf("forty processes with a limit of twenty: code %d, stdout %q, stderr %q", r.Code, r.Stdout, r.Stderr)
	}
}

func TestAContainerThatExceedsItsMemoryIsOOMKilled(t *testing.T) {
	d := newDocker(t)
	name := d.launch(opts("-m", "64m"), "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
	expect(t, "the exit code", d.do("wait", name), "137")
	expect(t, "OOMKilled", d.inspect(name, ".State.OOMKilled"), "true")
}

func TestAKilledContainerIsNotOOMKilled(t *testing.T) {
	d := newDocker(t)
	name := d.launch(opts("-m", "64m"), "sleep", "1000")
	d.do("kill", name)
	expect(t, "the exit code", d.do("wait", name), "137")
	expect(t, "OOMKilled", d.inspect(name, ".State.OOMKilled"), "false")
}

func TestAContainerMayUseTheMemoryItWasGiven(t *testing.T) {
	d := newDocker(t)
	r := d.tryRun(opts("-m", "256m"), "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
	expect(t, "the exit code of a program that takes 200 of 256 MiB", r.Code, 0)
}

func TestStatsAreTheContainersOwn(t *testing.T) {
	d := newDocker(t)
	const limit = 200 << 20
	name := d.launch(opts("-m", strconv.Itoa(limit)), "sh", "-c", "while :; do :; done")
	var stats struct{ CPUPerc, MemUsage, PIDs string }
	must(t, commandTime, func() error { // the first sample after a start may have no CPU time yet
		if err := json.Unmarshal([]byte(d.do("stats", "--no-stream", "--format", "{{json .}}", name)), &stats); err != nil {
			return err
		}
		percent, err := strconv.ParseFloat(strings.TrimSuffix(stats.CPUPerc, "%"), 64)
		if err != nil {
			return err
		}
		if percent < 10 {
			return fmt.Errorf("a busy container uses %v%% of a CPU", percent)
		}
		return nil
	})
	used, maximum, _ := strings.Cut(stats.MemUsage, " / ")
	usage := bytesOf(t, used)
	if !reference() && (usage < 10<<20 || usage > 1<<30) {
		t.Errorf("memory in use is %s", used)
	}
	if usage > hostMemory(t)/4 {
		t.Errorf("memory in use is %s, which looks like the host's", used)
	}
	// The VM around the container may add its part; the host's memory is no limit.
	if got := bytesOf(t, maximum); got < limit-1<<20 || got > 3*limit {
		t.Errorf("the limit is %s for a container of %d MiB", maximum, limit>>20)
	}
	if n, err := strconv.Atoi(stats.PIDs); err != nil || n < 1 {
		t.Errorf("it has %q processes", stats.PIDs)
	}
}

func bytesOf(t *testing.T, text string) int64 {
	t.Helper()
	n, err := units.RAMInBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func hostMemory(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	kib, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
