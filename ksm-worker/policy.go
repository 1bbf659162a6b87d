// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"strconv"
	"time"
)

// seen is what a policy knows at one look.
type seen struct {
	at time.Time

	merged    int64 // pages that merging saves: pages_sharing and pages of zeros
	tracked   int64 // pages that the kernel knows as mergeable
	volatile  int64 // pages that change too fast, or that smart_scan passes over
	fullScans int64
	scanned   int64 // pages, since boot
	profit    int64 // bytes that merging saves, less the kernel's notes of pages; 0 on kernels that do not say

	cpu      time.Duration // of ksmd, since boot
	cpuKnown bool
	cost     time.Duration // of a look at a page, as measured
	host     knobs         // the host's own settings

	pressure  float64
	anonPages int64 // of the host
	vmPages   int64 // anonymous ones of the VMs that may be merged
	vms       int
}

// order is what a policy wants: settings of its own, or the host's.
type order struct {
	settings knobs         // nil: the host's own
	again    time.Duration // until the next look
	budget   float64       // what ksmd may use now, in percent of a core; 0: not bounded by a number
}

// policy decides what the kernel is told. It lives from the first VM to the last.
type policy interface {
	look(seen) order
	// started and stopped tell of a VM at that moment.
	started(time.Time)
	stopped(time.Time)
	phase() string
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// parse reads a setting; what is no number is 0.
func parse(text string) float64 {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0
	}
	return v
}
