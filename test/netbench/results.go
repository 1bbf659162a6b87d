// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// results are the samples of each measure in each berth.
type results struct {
	facts    []string
	columns  []string
	measures []measure
	samples  map[string]map[string][]float64 // by measure, then by berth
	costs    map[string]map[string]*total    // likewise
}

// total is the processor time of all samples, and what was moved for it.
type total struct {
	cost
	moved float64
}

// per is the time in microseconds for one thing that was moved.
func (t *total) per(d time.Duration) float64 { return float64(d.Microseconds()) / t.moved }

func newResults(ctx context.Context, b *bench) *results {
	r := &results{facts: facts(ctx), samples: map[string]map[string][]float64{}, costs: map[string]map[string]*total{}}
	for _, one := range b.berths {
		r.columns = append(r.columns, one.name)
	}
	return r
}

// facts are what a number means nothing without.
func facts(ctx context.Context) []string {
	lines := []string{fmt.Sprintf("%s; %d cores", time.Now().UTC().Format("2006-01-02 15:04 MST"), runtime.NumCPU())}
	for _, argv := range [][]string{{"uname", "-r"}, {"qemu-system-x86_64", "--version"}, {"runc", "--version"}} {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
		if err != nil {
			continue // and the line is not there
		}
		line, _, _ := strings.Cut(string(out), "\n")
		lines = append(lines, line)
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		lines = append(lines, "load before: "+strings.Join(strings.Fields(string(load))[:3], " "))
	}
	return lines
}

func (r *results) add(m measure, berth string, s sample, c cost) {
	if r.samples[m.name] == nil {
		r.measures = append(r.measures, m)
		r.samples[m.name], r.costs[m.name] = map[string][]float64{}, map[string]*total{}
	}
	r.samples[m.name][berth] = append(r.samples[m.name][berth], s.value)
	t := r.costs[m.name][berth]
	if t == nil {
		t = &total{}
		r.costs[m.name][berth] = t
	}
	t.guest, t.loop, t.moved = t.guest+c.guest, t.loop+c.loop, t.moved+s.moved
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// print writes the table: medians, and the least and the greatest sample.
func (r *results) print(w io.Writer) {
	fmt.Fprintln(w, strings.Join(r.facts, "; "))
	table := tabwriter.NewWriter(w, 0, 0, 1, ' ', tabwriter.AlignRight|tabwriter.Debug)
	fmt.Fprint(table, "\nmeasure\tunit\tn\t")
	for _, column := range r.columns {
		fmt.Fprintf(table, "%s\tleast–greatest\t", column)
	}
	fmt.Fprintln(table)
	for _, m := range r.measures {
		fmt.Fprintf(table, "%s\t%s\t%d\t", m.name, m.unit, len(r.samples[m.name][r.columns[0]]))
		for _, column := range r.columns {
			values := r.samples[m.name][column]
			fmt.Fprintf(table, "%s\t%s–%s\t", number(median(values)), number(slices.Min(values)), number(slices.Max(values)))
		}
		fmt.Fprintln(table)
	}
	fmt.Fprint(table, "\n\nprocessor time of QEMU, µs\tper\t")
	for _, column := range r.columns[1:] {
		fmt.Fprintf(table, "%s: guest\tmain loop\t", column)
	}
	fmt.Fprintln(table)
	for _, m := range r.measures {
		fmt.Fprintf(table, "%s\t%s\t", m.name, things[m.unit])
		for _, column := range r.columns[1:] {
			t := r.costs[m.name][column]
			fmt.Fprintf(table, "%s\t%s\t", number(t.per(t.guest)), number(t.per(t.loop)))
		}
		fmt.Fprintln(table)
	}
	_ = table.Flush() // a writer that fails has said so to nobody who could help
}

// things are what a measure of a unit moves.
var things = map[string]string{"Mbit/s": "MB", "packets/s": "packet", "ms": "round trip", "1/s": "request"}

// number keeps about three digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 1:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// write writes the file that other programs read.
func (r *results) write(path string) error {
	type entry struct {
		Median  float64   `json:"median"`
		Samples []float64 `json:"samples"`
		Unit    string    `json:"unit"`
		Guest   float64   `json:"guest_us,omitempty"` // processor time of QEMU for each thing moved
		Loop    float64   `json:"loop_us,omitempty"`
	}
	all := map[string]map[string]entry{}
	for _, m := range r.measures {
		all[m.name] = map[string]entry{}
		for berth, values := range r.samples[m.name] {
			t := r.costs[m.name][berth]
			all[m.name][berth] = entry{median(values), values, m.unit, t.per(t.guest), t.per(t.loop)}
		}
	}
	text, err := json.MarshalIndent(map[string]any{"facts": r.facts, "measures": all}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
