// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

// rawHandler gives the addresses of the signal handler and of the code that ends
// one, for rt_sigaction(2).
func rawHandler() (handler, restorer uintptr)
