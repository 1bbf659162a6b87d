// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package spec is the part of the conformance suite that is ours: a case for
// each MUST of the OCI runtime-spec that a runtime for Linux can be asked, named
// by its section. The runtimes are driven by the OCI command line alone, and what
// is inside a container is seen by the probe that runs in it.
//
// Cases are grouped so that one container start answers for many: see inside. It
// imports test/e2e/host and the suite's own packages. The invariant: what cannot
// be told apart from outside is not asked.
package spec

import (
	"context"
	"slices"

	"bulkhead/test/conformance"
)

// Part is the part; probe is the path of the built conformance-probe.
func Part(probe string) conformance.Part {
	p := conformance.Part{
		Name: "spec",
		About: "One case for each MUST of the OCI runtime-spec 1.3.0 that a runtime for Linux can be asked, and for those of its other sentences that callers build on. " +
			"The runtimes are driven by the OCI command line; inside the containers a small program reports what it finds (`test/conformance/probe`).",
		Open: func(context.Context, *conformance.Stage) (any, func() error, error) {
			return session{probe: probe}, func() error { return nil }, nil
		},
	}
	p.Groups = slices.Concat(lifecycleGroups(), hookGroups(), refusalGroups(), processGroups(), mountGroups(), linuxGroups(), featureGroups(), commandGroups())
	return p
}

// session is what the groups of a runtime share.
type session struct{ probe string }
