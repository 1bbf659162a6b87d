// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package version says which Bulkhead this is. It imports nothing.
package version

// Version is the release, a semantic version: the nats CLI insists on one.
const Version = "0.1.0"

// Commit is the commit built from, set by the linker (see the Makefile).
var Commit = "unknown"
