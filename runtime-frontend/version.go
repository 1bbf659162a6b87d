// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"

	"bulkhead/runtime-frontend/bundle"
)

// Version is set by the build (-ldflags -X).
var Version = "0.1.0-dev"

var versionCommand = command{
	name: "version", usage: "print the version", maxArgs: 0,
	run: func(_ context.Context, inv *invocation) error { return printVersion(inv.std.Out) },
}

// printVersion writes runc's lines with our name. go-runc's Version wants the
// words "runc version" in front, but no engine calls it for a runtime of another name; Docker and podman
// take what follows the word "version", and a runtime that claimed to be runc would be believed.
func printVersion(w io.Writer) error {
	_, err := fmt.Fprintf(w, "bulkhead version %s\ncommit: %s\nspec: %s\n", Version, commit(), bundle.VersionMax)
	return err
}

// commit is the revision that the Go toolchain wrote into the program.
func commit() string {
	revision, modified := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			switch {
			case setting.Key == "vcs.revision":
				revision = setting.Value
			case setting.Key == "vcs.modified" && setting.Value == "true":
				modified = "-dirty"
			}
		}
	}
	return revision + modified
}
