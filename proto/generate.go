// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package proto holds the contracts of the house: one protobuf package per
// service, the Go code generated from it, and the words of its enumerations. It
// imports nothing of ours.
//
// Regenerate with "make proto" (Debian: protobuf-compiler, libprotobuf-dev;
// the Go plugin is taken at the version go.mod names).
package proto
