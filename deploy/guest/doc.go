// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package guest holds what a sandbox VM boots: the kernel (kernel.config, build-kernel) and the root image around the agent
// (build-image). It has no Go API; its tests boot the result in QEMU and check what an agent and its containers rely on.
package guest
