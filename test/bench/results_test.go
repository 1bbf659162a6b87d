// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMedianAndPercentileOfSamples(t *testing.T) {
	t.Parallel()
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		name        string
		values      []float64
		unit        string
		median, p95 float64
	}{
		{"one sample is both", []float64{7}, "ms", 7, 7},
		{"an even number has a median between two", []float64{4, 1, 3, 2}, "ms", 2.5, 4},
		{"an odd number has one in the middle", []float64{9, 1, 5}, "ms", 5, 9},
		{"nearest rank of a hundred", hundred, "ms", 50.5, 95},
		{"the worse rates are the low ones", hundred, "MB/s", 50.5, 6},
		{"so are those of other things", hundred, "1/s", 50.5, 6},
	} {
		if got := median(c.values); got != c.median {
			t.Errorf("%s: median %v instead of %v", c.name, got, c.median)
		}
		if got := p95(slices.Clone(c.values), c.unit); got != c.p95 {
			t.Errorf("%s: p95 %v instead of %v", c.name, got, c.p95)
		}
	}
}

func TestFileAndTableHoldWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	r := newResults(regexp.MustCompile("state|mem|run_true"))
	r.addTime("runc_run_true", 5*time.Millisecond)
	for _, ms := range []int{1, 2, 9} {
		r.addTime("state", time.Duration(ms)*time.Millisecond)
		r.addTime("runc_state", time.Duration(ms)*time.Millisecond/2)
		r.addTime("delete", time.Second)
	}
	r.addMean("mem_per_vm", "MB", 1200, 10)
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]summary
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if want := (summary{3, 2, 9, "ms"}); file["state"] != want {
		t.Errorf("state is %v instead of %v", file["state"], want)
	}
	if want := (summary{10, 120, 120, "MB"}); file["mem_per_vm"] != want {
		t.Errorf("mem_per_vm is %v instead of %v", file["mem_per_vm"], want)
	}
	if want := (summary{1, 5, 5, "ms"}); file["runc_run_true"] != want {
		t.Errorf("runc_run_true is %v instead of %v", file["runc_run_true"], want)
	}
	if len(file) != 4 {
		t.Errorf("the file holds %v", file)
	}
	var out strings.Builder
	r.print(&out, facts{})
	row := regexp.MustCompile(`(?m)^\| state +\| +2\.00 \| 9\.00 \| +3 \| +1\.00 \| 4\.50 \| +\| +\| +ms \| +2\.00 \| +\|$`)
	if !row.MatchString(out.String()) {
		t.Errorf("the table has no row with both runtimes:\n%s", out.String())
	}
}
