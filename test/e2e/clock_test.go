// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTheContainersClockIsTheHosts: an emulated guest that guesses the frequency
// of its counter while the host is busy can run at several times the host's pace.
func TestTheContainersClockIsTheHosts(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sleep", "1000")
	// An exec brackets the moment at which the container read its clock.
	read := func(command ...string) (value float64, before, after time.Time) {
		before = time.Now()
		text := d.do(append([]string{"exec", name}, command...)...)
		after = time.Now()
		value, err := strconv.ParseFloat(strings.Fields(text)[0], 64)
		if err != nil {
			t.Fatalf("%v says %q: %v", command, text, err)
		}
		return value, before, after
	}
	wall, before, after := read("date", "+%s")
	if wall < float64(before.Unix()-1) || wall > float64(after.Unix()+1) {
		t.Errorf("the container says it is %.0f, between %d and %d on the host", wall, before.Unix(), after.Unix())
	}
	up1, before1, after1 := read("cat", "/proc/uptime")
	for time.Since(after1) < 4*time.Second { // the span that is measured
		time.Sleep(100 * time.Millisecond)
	}
	up2, before2, after2 := read("cat", "/proc/uptime")
	least, most := before2.Sub(after1).Seconds(), after2.Sub(before1).Seconds()
	const slack = 0.02
	if took := up2 - up1; took < least*(1-slack)-0.02 || took > most*(1+slack)+0.02 || math.IsNaN(took) {
		t.Errorf("%.2f s passed in the container, between %.2f and %.2f on the host", took, least, most)
	}
}
