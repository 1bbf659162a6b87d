// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"regexp"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// VersionMin is the oldest version of the runtime-spec that is accepted. Within a
// major version the specification promises compatibility, so any 1.x.y is taken: a runtime that
// refuses minor versions it has not heard of fails with every new engine.
const VersionMin = "1.0.0"

// VersionMax is the newest version whose every property has a verdict here.
var VersionMax = specs.Version

// versionForm is MAJOR.MINOR.PATCH with an optional suffix (Semantic Versioning
// 2.0.0). Compiled on first use: most commands read no bundle.
var versionForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)([-+][0-9A-Za-z.+-]+)?$`)
})

func checkVersion(version string) error {
	if version == "" {
		return refuse("ociVersion", "it is missing")
	}
	parts := versionForm().FindStringSubmatch(version)
	if parts == nil {
		return refuse("ociVersion", fmt.Sprintf("%q is not a semantic version", version))
	}
	if parts[1] != "1" {
		return refuse("ociVersion", fmt.Sprintf("%q is of another major version than 1", version))
	}
	return nil
}
