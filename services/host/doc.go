// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package host is the all-in-one daemon: the embedded bus and, by default, every
// service in one process.
//
// It is the only place that may import services, and it only composes them: they
// meet on the bus here as anywhere. The invariant to remember: the bus is there
// before the first service and goes after the last.
package host
