// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the end-to-end tests: what Bulkhead promises to someone with
// Docker, to an engine, to an operator with the nats command line, and to whoever
// kills parts of it. Everything is real: the binaries of the build, QEMU, Docker.
//
// "make e2e" runs them. BULKHEAD_BUILD names the build directory (../../build
// without it), BULKHEAD_NATS_CLI the nats command line. BULKHEAD_E2E_RUNTIME=runc
// runs the tests of Docker with that runtime instead, which shows that they ask
// for what the reference does.
//
// The invariant: what the tests start they end, and the suite fails if the
// product leaves anything behind.
package e2e
