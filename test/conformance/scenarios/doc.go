// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package scenarios is the part of the conformance tests in which people use
// engines: 99 things that are done with Docker, containerd's ctr, Podman and
// CRI, each with the output, the exit code and the engine's record of it that
// runc gives. Every runtime gets engines of its own, runs the same scenarios and
// must meet the same expectations; where one does not, the scenario declares it,
// with the reason and the words in which it is told.
//
// Scenarios that use the same container are a chain; chains run side by side.
// After the last, nothing of the containers may be left.
//
// It may import test/conformance, test/e2e/host and test/e2e/engine. The
// invariant: a step that does not end in time is a failure, never a wait.
package scenarios
