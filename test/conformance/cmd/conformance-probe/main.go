// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command conformance-probe is the program inside the containers of the
// conformance suite: see package probe.
package main

import (
	"fmt"
	"os"

	"bulkhead/test/conformance/probe"
)

func main() {
	if err := probe.Main(); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}
