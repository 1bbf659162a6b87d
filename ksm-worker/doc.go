// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package ksmworker is the ksm service: it will steer the kernel's same-page
// merging for the memory of VMs. In this version it registers, answers and
// reads; it writes nothing to the kernel.
//
// It imports bus and proto and no other service. The invariant to remember: what
// it says of the kernel was read from the kernel at that moment.
package ksmworker
