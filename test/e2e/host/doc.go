// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package host gives end-to-end tests a Bulkhead host of their own: its daemons,
// its command line, bundles to run, a monitor that does what an engine's shim
// does, and the search for what was left behind.
//
// It drives binaries and reads the bus; it may import bus and proto and no room
// of the product. The invariant: everything it makes carries the token of one
// Ground in its name, so that what is left of it can be found and removed.
package host
