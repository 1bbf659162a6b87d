// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package vmworker is the vm service: it owns the containers and the virtual
// machines they run in.
//
// It answers <host>.vm.* (proto/vm/v1), runs the create saga, watches relays
// and VMs for their ends, and finds its VMs again after a restart. It imports
// bus, proto and its own rooms, and no other service.
//
// The invariant to remember: the directory of a VM under <run_dir>/vm is the
// truth. A record is written there before anything it speaks of is started, and
// removed after everything it speaks of is gone; the KV buckets are the copy
// that people and programs read.
package vmworker
