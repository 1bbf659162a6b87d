// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// definitions are the table's footer, so that it can stand alone.
const definitions = `run_true_*: create + start + wait + delete of busybox true by the OCI command line, the caller reaping the process as an engine does, with a
  ready clone of the warm pool, a clone made on demand, a VM that boots. create, start, end (of the process), delete are the parts of the one that is the default.
exec_true: exec --detach until the process's end. state: the command. echo_rtt: a byte into the pty master until the container's tty echoes it.
stdout_rate, stdin_rate: 256 MiB by dd bs=64k through the pipe.
mem_per_vm: the fall of MemAvailable by N idle containers, read 10 s after the last start, divided (one value), with KSM off; vm_pss, relay_pss: PSS of each QEMU, each relay, then;
  daemon_per_vm: by how much bulkheadd has grown, divided. All three are part of mem_per_vm.
mem_per_vm_ksm: the same after KSM, mode auto, has settled; ksm_settle_s: from its start until 99 % of the pages that were merged in the end were.
ksm_saved_per_vm: the kernel's pages_sharing then, divided, before its bookkeeping. ksmd_cpu_after: of one core, over 30 s after that. idle_cpu_per_vm: processor time of QEMUs and relays over 30 s, of one core, divided.
starts_per_s: those N, create and start, 4 at a time. vms_live: containers alive at once, each of which has answered an exec when all were there (live_exec_true);
  live_starts_per_s: a sample for each 25 of them, in the order of their starts, KSM in its default mode.
phase_*: the worker's record of starts one after the other; agent_ready and vm_boot count from the start of QEMU. Samples of the runtimes alternate.
p95 is by nearest rank, of rates the low one. MB is 10^6 bytes. / runc, / runsc: bulkhead's median by theirs.`

// print writes the table in Markdown, which people can read as it is.
func (r *results) print(w io.Writer, f facts) {
	fmt.Fprintln(w)
	for _, line := range f.lines() {
		fmt.Fprintln(w, line)
	}
	rows := [][]string{{"", "bulkhead median", "p95", "n", "runc median", "p95", "runsc median", "p95", "unit", "/ runc", "/ runsc"}}
	beside := map[string]bool{} // numbers shown in the row of another
	for _, name := range r.names {
		if bare(name) {
			for _, prefix := range prefixes[1:] {
				beside[twin(prefix, name)] = true
			}
		}
	}
	for _, name := range r.names {
		if !beside[name] {
			rows = append(rows, r.row(name))
		}
	}
	fmt.Fprintln(w)
	table(w, rows)
	for _, line := range r.leftOut {
		fmt.Fprintf(w, "\nnot measured: %s", line)
	}
	fmt.Fprintf(w, "\n\n%s\n", definitions)
}

// bare says whether a name is one of bulkhead's.
func bare(name string) bool {
	return !slices.ContainsFunc(prefixes[1:], func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// row is a number of bulkhead and its twins, or one that no number of bulkhead stands beside.
func (r *results) row(name string) []string {
	cells := []string{name}
	var unit string
	var medians [3]float64
	for i, prefix := range prefixes {
		full := twin(prefix, name)
		if !bare(name) {
			full = ""
			if strings.HasPrefix(name, prefix) && prefix != "" {
				full = name
			}
		}
		s, ok := r.series[full]
		if !ok {
			cells = append(cells, "", "")
			if i == 0 {
				cells = append(cells, "")
			}
			continue
		}
		sum := s.summary()
		unit, medians[i] = sum.Unit, sum.Median
		cells = append(cells, number(sum.Median), number(sum.P95))
		if i == 0 {
			cells = append(cells, strconv.Itoa(sum.N))
		}
	}
	cells = append(cells, unit)
	for _, other := range medians[1:] {
		ratio := ""
		if medians[0] > 0 && other > 0 {
			ratio = number(medians[0] / other)
		}
		cells = append(cells, ratio)
	}
	return cells
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
