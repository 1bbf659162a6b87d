// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import "context"

// ksmNames are the numbers that need a ksm service that steers the kernel.
var ksmNames = []string{"mem_per_vm_ksm", "ksm_settle_s", "ksmd_cpu_after"}

// stopMerging keeps the ksm service from merging what is measured, and says whether
// it steers at all.
func (b *bench) stopMerging(context.Context) (steered bool, err error) {
	if b.results.wants(ksmNames...) {
		b.results.leaveOut("mem_per_vm_ksm, ksm_settle_s, ksmd_cpu_after", "this version's ksm service steers nothing")
	}
	return false, nil
}

// merge takes what KSM makes of a burst of n idle containers.
func (b *bench) merge(context.Context, float64, int) error { return nil }
