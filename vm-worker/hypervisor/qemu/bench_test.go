// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkBoot measures from the request to the monitor's answer, to the first
// byte of the guest's init, and the memory of the idle VM. Compare two runs on one
// machine; the figures alone say little.
func BenchmarkBoot(b *testing.B) {
	var start, guest, uptime, cpu, pss float64
	for b.Loop() {
		begin := time.Now()
		v := startVM(b, newSpec(b))
		start += time.Since(begin).Seconds()
		c := connect(b, v)
		up, _ := strconv.ParseFloat(c.ready(), 64)
		guest += time.Since(begin).Seconds()
		uptime += up
		cpu += cpuSeconds(b, v.Record().PID)
		pss += pssMiB(b, v.Record().PID)
		if err := v.Kill(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	n := float64(b.N)
	b.ReportMetric(1000*start/n, "ms-to-monitor")
	b.ReportMetric(1000*guest/n, "ms-to-guest")
	b.ReportMetric(1000*uptime/n, "ms-guest-uptime")
	b.ReportMetric(1000*cpu/n, "ms-cpu") // steadier than the clock on a busy machine
	b.ReportMetric(pss/n, "MiB-PSS")
}

func pssMiB(t testing.TB, pid int) float64 {
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/smaps_rollup", pid))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	return 0
}

// cpuSeconds is what the process has used, in user and system mode.
func cpuSeconds(t testing.TB, pid int) float64 {
	stat := readFile(t, fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100
}
