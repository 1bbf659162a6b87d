// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bulkhead-relay stands for one container process on the host. Only
// the frontend starts it; its arguments are those of the container process.
package main

import (
	"runtime"

	"bulkhead/runtime-frontend/relay"
)

// The main goroutine stays on the leading thread: /proc/<pid> shows that
// thread's namespaces.
func init() { runtime.LockOSThread() }

func main() { relay.Main() }
