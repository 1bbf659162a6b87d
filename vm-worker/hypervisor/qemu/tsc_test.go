// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"math"
	"testing"
	"time"
)

func TestHostTSCAgreesWithTheClock(t *testing.T) {
	khz := hostTSC()
	if khz == 0 {
		t.Skip("this host's time stamp counter is not constant (no constant_tsc and nonstop_tsc in /proc/cpuinfo)")
	}
	clock0, tsc0 := tscSample()
	time.Sleep(200 * time.Millisecond)
	clock1, tsc1 := tscSample()
	took := float64(tsc1-tsc0) / float64(khz) * 1e6
	if off := math.Abs(took/float64(clock1-clock0) - 1); off > 0.001 {
		t.Fatalf("%d kHz is off by %.3f %%", khz, 100*off)
	}
}
