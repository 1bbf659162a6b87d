// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package relay

// rawHandler is none: this processor's is not written.
func rawHandler() (handler, restorer uintptr) { return 0, 0 }
