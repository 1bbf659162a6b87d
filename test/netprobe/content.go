// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
)

// blockBytes is what is read and written at once.
const blockBytes = 256 << 10

// A content of n bytes is a sequence of 64-bit words, each of which follows from
// its place: the receiver compares every word with what it must be. Beside that, both ends
// make a sum of their own. Neither costs much under emulation, where SHA-256
// would take longer than the transfer.
func fill(block []byte, word uint64) {
	for i := 0; i+8 <= len(block); i += 8 {
		binary.LittleEndian.PutUint64(block[i:], mix(word))
		word++
	}
}

// mix is the finalizer of SplitMix64: neighbouring words have nothing in common.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// contentSum is FNV-like over words: it depends on each and on their order.
type contentSum uint64

func (s *contentSum) add(block []byte) {
	h := uint64(*s)
	for i := 0; i+8 <= len(block); i += 8 {
		h = (h ^ binary.LittleEndian.Uint64(block[i:])) * 0x100000001b3
		h ^= h >> 29
	}
	*s = contentSum(h)
}

func (s contentSum) String() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(s))
	return hex.EncodeToString(b[:])
}

// giveContent writes n bytes, a multiple of 8, and gives their sum.
func giveContent(w io.Writer, n int64) (contentSum, error) {
	var sum contentSum
	block := make([]byte, blockBytes)
	for at := int64(0); at < n; {
		part := block[:min(n-at, blockBytes)]
		fill(part, uint64(at/8))
		sum.add(part)
		if _, err := w.Write(part); err != nil {
			return sum, fmt.Errorf("after %d bytes: %w", at, err)
		}
		at += int64(len(part))
	}
	return sum, nil
}

// takeContent reads n bytes and their end, compares them and gives their sum.
func takeContent(r io.Reader, n int64) (contentSum, error) {
	var sum contentSum
	block, want := make([]byte, blockBytes), make([]byte, blockBytes)
	for at := int64(0); at < n; {
		part := block[:min(n-at, blockBytes)]
		if got, err := io.ReadFull(r, part); err != nil {
			return sum, fmt.Errorf("after %d bytes: %w", at+int64(got), err)
		}
		fill(want[:len(part)], uint64(at/8))
		if string(part) != string(want[:len(part)]) {
			return sum, fmt.Errorf("of the %d bytes from %d some are wrong", len(part), at)
		}
		sum.add(part)
		at += int64(len(part))
	}
	return sum, nil
}
