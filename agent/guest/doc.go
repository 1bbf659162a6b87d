// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package guest makes a bare kernel into a system that containers can run on,
// and is the only place that changes the machine as a whole: mounts, cgroups,
// kernel parameters, the clock, the random generator, power.
//
// It imports only x/sys and the standard library, so that it costs nothing at
// start. The invariant: it runs as root in a VM of its own. Nothing here may be
// called on a host.
package guest
