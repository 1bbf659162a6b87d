// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package loopback gives the programs of the guest what listens on loopback
// addresses of their network namespace on the host, at the same addresses and ports:
// Docker's resolver at 127.0.0.11, above all.
//
// For each of them it listens at the same address on a port of its own, and has the
// kernel rewrite the port when a program connects or sends there (redirect.go). What
// arrives travels to the host as a flow of bus/loopback. The listeners live as long as
// the guest; sessions of the port come and go, and with each go its connections.
//
// It imports bus and proto. The invariant to remember: a program that listens on
// all addresses itself (a DNS server in the container) is not disturbed.
package loopback
