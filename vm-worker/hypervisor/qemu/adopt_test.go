// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

const starterDir = "BULKHEAD_TEST_STARTER_DIR"

func starter(string) {}
