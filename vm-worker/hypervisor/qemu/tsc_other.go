// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package qemu

// hostTSC is 0 where there is no time stamp counter to hand on.
func hostTSC() int64 { return 0 }
