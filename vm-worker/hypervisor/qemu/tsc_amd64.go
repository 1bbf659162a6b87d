// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// tscMeasure is how long the counter is compared with the clock: at a
// microsecond of doubt at each end, the frequency is good to 0.01 %.
const tscMeasure = 20 * time.Millisecond

// hostTSC is the frequency of the host's time stamp counter in kHz, 0 when it
// is not constant.
//
// QEMU's TCG gives the guest the host's counter, and the guest's kernel has to
// find its frequency by comparing it with emulated timers while it boots. On a
// busy host those come late, and the guest's clock then runs wrong for its whole
// life, since tsc=reliable keeps it from being doubted. The host can tell it.
var hostTSC = sync.OnceValue(func() int64 {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !strings.Contains(string(cpuinfo), " constant_tsc") || !strings.Contains(string(cpuinfo), " nonstop_tsc") {
		return 0
	}
	clock0, tsc0 := tscSample()
	time.Sleep(tscMeasure)
	clock1, tsc1 := tscSample()
	if clock1 <= clock0 || tsc1 <= tsc0 {
		return 0
	}
	return int64(float64(tsc1-tsc0) / float64(clock1-clock0) * 1e6)
})

// tscSample reads clock and counter as near to each other as a few tries get:
// the try that took least was not interrupted.
func tscSample() (nanoseconds int64, tsc uint64) {
	best := int64(1 << 62)
	for range 16 {
		before := rawClock()
		counter := rdtsc()
		after := rawClock()
		if after-before < best {
			best, nanoseconds, tsc = after-before, before+(after-before)/2, counter
		}
	}
	return nanoseconds, tsc
}

func rawClock() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
