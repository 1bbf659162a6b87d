// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"io"

	"bulkhead/bus/version"
	"bulkhead/runtime-frontend/bundle"
)

var versionCommand = command{
	name: "version", usage: "print the version", maxArgs: 0,
	run: func(_ context.Context, inv *invocation) error { return printVersion(inv.std.Out) },
}

// printVersion writes runc's lines with our name. go-runc's Version wants the
// words "runc version" in front, but no engine calls it for a runtime of another name; Docker and podman
// take what follows the word "version", and a runtime that claimed to be runc would be believed.
func printVersion(w io.Writer) error {
	_, err := fmt.Fprintf(w, "bulkhead version %s\ncommit: %s\nspec: %s\n", version.Version, version.Commit, bundle.VersionMax)
	return err
}
