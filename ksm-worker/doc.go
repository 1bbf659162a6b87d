// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package ksmworker is the ksm service: it steers the kernel's same-page merging
// (KSM) for the memory of VMs. It learns of VMs from their records and events on
// the bus, and reads what it needs of their processes from /proc.
//
// A policy (auto.go, throttle.go) is asked at every look what the kernel should
// be told; it sees numbers and touches nothing. The governor (governor.go) is the
// only writer: it keeps the host's own settings before it writes the first of
// its own, gives them back, and leaves alone what somebody else has changed. The
// controller (controller.go) joins the two, on one goroutine.
//
// It imports bus and proto and no other service. The invariant to remember: what it
// changed it restores, whoever dies in between, and nothing that others have merged or
// set is undone.
package ksmworker
