// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"fmt"
	"os"
	"testing"

	"bulkhead/vm-worker/hostcgroup"
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	hostcgroup.Main() // returns unless this process is to be the victim of an OOM report
	if os.Getenv(childEnv) != "" {
		return childMain()
	}
	if file := os.Getenv(thrashEnv); file != "" {
		return thrash(file)
	}
	dir, err := os.MkdirTemp("", "worker-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := buildRelay(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
