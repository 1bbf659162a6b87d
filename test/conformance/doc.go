// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package conformance runs one list of promises against several runtimes, side
// by side, and says where they differ: Bulkhead is a drop-in for runc where the
// table says "pass" twice, and every other line has its reason.
//
// A Part is a list of Groups, a Group is one function that runs once for each
// runtime and gives a verdict for each of its Cases: so one container start can
// answer for many of them. A Case is expected to pass on every runtime unless it
// declares otherwise, next to the test and with the reason; a run fails when a
// verdict is not the declared one, in either direction, so that a declaration
// goes when its reason does.
//
// A further part is a package below this one with a function Part() that
// returns a conformance.Part, and a line in cmd/conformance, which composes them
// and knows nothing of what they test. A part that needs more than the binaries,
// such as an engine for each runtime, starts that in Part.Open and finds it in
// Stage.Session. The part's table goes between the marks that name it in
// docs/conformance.md ("make conformance UPDATE=1" writes it), its numbers into
// build/conformance.json. See spec for an example.
//
// It drives binaries; it imports test/e2e/host and no room of the product. The
// invariant: a Case without a verdict has failed.
package conformance
