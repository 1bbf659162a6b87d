// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// series are the samples of one name.
type series struct {
	unit   string
	values []float64
	n      int // what stands behind a single value, where it is a mean
}

// results are all series, in the order of their first sample.
type results struct {
	only    *regexp.Regexp
	names   []string
	series  map[string]*series
	leftOut []string // what could not be measured, and why
}

func newResults(only *regexp.Regexp) *results {
	return &results{only: only, series: map[string]*series{}}
}

// wants says whether one of the names was asked for.
func (r *results) wants(names ...string) bool { return slices.ContainsFunc(names, r.only.MatchString) }

// leaveOut notes why a name that was asked for has no number.
func (r *results) leaveOut(name, why string) {
	if line := name + ": " + why; !slices.Contains(r.leftOut, line) {
		r.leftOut = append(r.leftOut, line)
	}
}

// add notes a sample, if its name was asked for.
func (r *results) add(name, unit string, value float64) {
	if !r.wants(name) {
		return
	}
	s, ok := r.series[name]
	if !ok {
		s = &series{unit: unit}
		r.series[name] = s
		r.names = append(r.names, name)
	}
	s.values = append(s.values, value)
}

func (r *results) addTime(name string, d time.Duration) {
	r.add(name, "ms", float64(d)/float64(time.Millisecond))
}

// addMean notes the total of n things that cannot be told apart.
func (r *results) addMean(name, unit string, total float64, n int) {
	if r.wants(name) {
		r.add(name, unit, total/float64(n))
		r.series[name].n = n
	}
}

// summary is a line of the table and an entry of the file.
type summary struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	Unit   string  `json:"unit"`
}

func (s *series) summary() summary {
	return summary{N: max(s.n, len(s.values)), Median: round(median(s.values)), P95: round(p95(s.values, s.unit)), Unit: s.unit}
}

// write writes the file that other programs read.
func (r *results) write(path string) error {
	all := map[string]summary{}
	for name, s := range r.series {
		all[name] = s.summary()
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// p95 is the value that 95 of 100 samples are not worse than, by nearest rank.
// Of a rate the worse ones are the smaller ones.
func p95(values []float64, unit string) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if strings.HasSuffix(unit, "/s") {
		slices.Reverse(sorted)
	}
	return sorted[int(math.Ceil(0.95*float64(len(sorted))))-1]
}

// round keeps three decimals: more would be noise, in a file that people compare.
func round(v float64) float64 { return math.Round(v*1000) / 1000 }
