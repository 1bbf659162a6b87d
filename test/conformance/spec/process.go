// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/test/conformance"
	"bulkhead/test/conformance/probe"
)

// processGroups ask for what config.md#process promises.
func processGroups() []conformance.Group {
	return []conformance.Group{
		inside{
			name: "process",
			configure: func(spec *specs.Spec, _ string) error {
				spec.Process.Args = []string{"/bin/probe", "", "a b", "c=d", "*"}
				spec.Process.Env = []string{"PATH=/bin", "EMPTY=", "EQUALS=a=b=c", "TWICE=1", "LINE=a\nb"}
				spec.Process.Cwd = "/home/app"
				return nil
			},
			cases: []look{
				{
					name: "config.md#process/args", says: "the program is executed with exactly the given arguments",
					see: func(r *probe.Report) error {
						return equalList("args", r.Args, []string{"/bin/probe", "", "a b", "c=d", "*"})
					},
				},
				{
					name: "config.md#process/env", says: "the environment has the given entries as they are written",
					see: func(r *probe.Report) error {
						for _, entry := range []string{"PATH=/bin", "EMPTY=", "EQUALS=a=b=c", "TWICE=1", "LINE=a\nb"} {
							if !slices.Contains(r.Env, entry) {
								return fmt.Errorf("env has no %q: %q", entry, r.Env)
							}
						}
						return nil
					},
				},
				{
					name: "config.md#process/cwd", says: "cwd is the working directory of the program",
					see: func(r *probe.Report) error { return equal("cwd", r.Cwd, "/home/app") },
				},
			},
		}.group(),
	}
}

func equalList(what string, got, want []string) error {
	if !slices.Equal(got, want) {
		return fmt.Errorf("%s are %q instead of %q", what, got, want)
	}
	return nil
}
