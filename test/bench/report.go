// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// definitions are the table's footer, so that it can stand alone.
const definitions = `run_true_cold: create + start + wait + delete of busybox true by the OCI command line, the caller reaping the process as an engine does;
  create, start, end (of the process), delete are its parts. exec_true: exec --detach until the process's end. state: the command.
echo_rtt: a byte into the pty master until the container's tty echoes it. stdout_rate, stdin_rate: 256 MiB by dd bs=64k through the pipe.
mem_per_vm: the fall of MemAvailable by 10 idle containers, divided (one value). vm_pss, relay_pss: PSS of each QEMU, each relay.
phase_*: the worker's record of those 10 starts; agent_ready and vm_boot count from the start of QEMU. Samples of both runtimes alternate.
p95 is by nearest rank, of rates the low one. MB is 10^6 bytes. ratio is bulkhead's median by runc's.`

// print writes the table in Markdown, which people can read as it is.
func (r *results) print(w io.Writer, f facts) {
	fmt.Fprintln(w)
	for _, line := range f.lines() {
		fmt.Fprintln(w, line)
	}
	rows := [][]string{{"", "bulkhead median", "p95", "n", "runc median", "p95", "n", "unit", "ratio"}}
	for _, name := range r.names {
		bare, isRunc := strings.CutPrefix(name, runcPrefix)
		if _, shown := r.series[bare]; isRunc && shown {
			continue // beside its twin
		}
		rows = append(rows, r.row(bare))
	}
	fmt.Fprintln(w)
	table(w, rows)
	fmt.Fprintf(w, "\n%s\n", definitions)
}

func (r *results) row(name string) []string {
	cells := []string{name}
	var unit string
	var medians []float64
	for _, full := range []string{name, runcPrefix + name} {
		s, ok := r.series[full]
		if !ok {
			cells = append(cells, "", "", "")
			continue
		}
		sum := s.summary()
		unit = sum.Unit
		medians = append(medians, sum.Median)
		cells = append(cells, number(sum.Median), number(sum.P95), strconv.Itoa(sum.N))
	}
	ratio := ""
	if len(medians) == 2 && medians[1] > 0 {
		ratio = number(medians[0] / medians[1])
	}
	return append(cells, unit, ratio)
}

// number keeps about three digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v >= 0.1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}

// table aligns the cells: names to the left, numbers to the right.
func table(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	line := func(row []string) {
		for i, cell := range row {
			if i == 0 {
				fmt.Fprintf(w, "| %-*s |", widths[i], cell)
			} else {
				fmt.Fprintf(w, " %*s |", widths[i], cell)
			}
		}
		fmt.Fprintln(w)
	}
	line(rows[0])
	for i, width := range widths {
		if i == 0 {
			fmt.Fprintf(w, "|%s|", strings.Repeat("-", width+2))
		} else {
			fmt.Fprintf(w, "%s:|", strings.Repeat("-", width+1))
		}
	}
	fmt.Fprintln(w)
	for _, row := range rows[1:] {
		line(row)
	}
}
