// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"html"
	"os"
	"strings"
)

// bar is a part of a start, in milliseconds.
type bar struct {
	name     string
	from, to float64
	whole    bool // a command of a user, not a part of one
}

// The chart's measures, in pixels.
const (
	chartWidth  = 900
	chartLabels = 230
	chartRow    = 26
	chartTop    = 40
)

// phaseBars lays the medians of a start on a line of time: the commands as a user
// sees them, and below each what the worker recorded of it.
func (r *results) phaseBars() []bar {
	at := func(name string) (float64, bool) {
		s, ok := r.series[name]
		if !ok {
			return 0, false
		}
		return median(s.values), true
	}
	var bars []bar
	now := 0.0
	for _, command := range partNames {
		took, ok := at(command)
		if !ok {
			continue
		}
		bars = append(bars, bar{command, now, now + took, true})
		inside := now
		switch command {
		case "create":
			// These count from the start of the VM: each begins where the one before ends.
			for _, name := range []string{"vm_spawn", "agent_ready", "vm_boot"} {
				if end, ok := at(phasePrefix + name); ok && now+end > inside {
					bars = append(bars, bar{name, inside, now + end, false})
					inside = now + end
				}
			}
			if took, ok := at(phasePrefix + "container_create"); ok {
				bars = append(bars, bar{"container_create", inside, inside + took, false})
			}
		case "start":
			if took, ok := at(phasePrefix + "container_start"); ok {
				bars = append(bars, bar{"container_start", inside, inside + took, false})
			}
		}
		now += took
	}
	return bars
}

// writeChart draws where the time of a container goes, if that was measured.
func (b *bench) writeChart(path string) error {
	bars := b.results.phaseBars()
	if len(bars) == 0 {
		b.results.leaveOut("chart", "neither the parts of a start nor its phases were measured")
		return nil
	}
	return os.WriteFile(path, []byte(chart(bars, b.facts)), 0o644)
}

func chart(bars []bar, f facts) string {
	end := 0.0
	for _, one := range bars {
		end = max(end, one.to)
	}
	scale := (chartWidth - chartLabels - 90) / max(end, 1)
	height := chartTop + chartRow*len(bars) + 30
	var w strings.Builder
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", chartWidth, height)
	fmt.Fprintf(&w, `<rect width="%d" height="%d" fill="white"/>`+"\n", chartWidth, height)
	accel := "no VM"
	if f.vm != nil {
		accel = f.vm.Accelerator
	}
	fmt.Fprintf(&w, `<text x="8" y="22" font-size="15">The life of /bin/true, medians in ms (%s, %d cores, kernel %s, %s)</text>`+"\n",
		html.EscapeString(accel), f.cores, html.EscapeString(f.kernel), f.date.UTC().Format("2006-01-02"))
	for i, one := range bars {
		y := chartTop + chartRow*i
		indent, colour := 24, "#7aa6d8"
		if one.whole {
			indent, colour = 8, "#2f5d93"
		}
		x := chartLabels + one.from*scale
		fmt.Fprintf(&w, `<text x="%d" y="%d">%s</text>`, indent, y+16, html.EscapeString(one.name))
		fmt.Fprintf(&w, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`, x, y+3, max((one.to-one.from)*scale, 1), chartRow-8, colour)
		fmt.Fprintf(&w, `<text x="%.1f" y="%d">%s</text>`+"\n", x+(one.to-one.from)*scale+5, y+16, number(one.to-one.from))
	}
	fmt.Fprintf(&w, `<text x="8" y="%d" fill="#555">Dark: the commands as a caller waits for them. Light: the worker's record of the VM and of the guest's part; the rest of create is the command itself and the bus.</text>`+"\n", height-10)
	return w.String() + "</svg>\n"
}
