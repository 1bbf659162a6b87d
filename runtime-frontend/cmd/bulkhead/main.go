// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bulkhead is the OCI runtime command line: see package frontend.
package main

import (
	"context"
	"os"

	frontend "bulkhead/runtime-frontend"
)

func main() {
	os.Exit(frontend.Main(context.Background(), os.Args, frontend.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
