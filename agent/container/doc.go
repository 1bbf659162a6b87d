// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package container runs OCI containers inside the guest with libcontainer: it
// translates what the host sent into a libcontainer configuration, owns every
// container process from its start to its collected exit status, and knows
// what a container left behind.
//
// It may import libcontainer, the reaper, the heap, the standard library and, for the shape
// of statistics, proto/vm; it knows neither the bus nor the wire format of the
// streams, which its caller gives it as a Streams. The invariant: what the specification asks for is done here or
// refused by name (refuse.go); nothing is dropped silently, except what
// belongs to the host by contract (namespace paths, cgroupsPath, host hooks, the
// numbers of processors and memory nodes).
package container
