// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

const (
	// ringMin is the smallest buffer a ring holds while it is not empty.
	ringMin = 4 << 10
	// ringKeep is the largest buffer a ring keeps while it is empty, so that a
	// stream in motion does not allocate for every frame.
	ringKeep = 64 << 10
)

// Ring is a queue of bytes with absolute offsets: it holds [Base, End). It
// grows with its contents up to a maximum and gives memory back when empty: what
// exceeds ringKeep at once, the rest by Release.
// The zero value has no room; use NewRing.
type Ring struct {
	buf  []byte // its length is zero or a power of two
	base uint64
	n    int
	max  int
}

// NewRing makes a ring that holds at most max bytes, a power of two of at least 4 KiB.
func NewRing(max int) Ring { return Ring{max: max} }

// Base is the offset of the oldest byte held.
func (r *Ring) Base() uint64 { return r.base }

// End is the offset after the newest byte.
func (r *Ring) End() uint64 { return r.base + uint64(r.n) }

// Len is the number of bytes held.
func (r *Ring) Len() int { return r.n }

// Space is how many more bytes fit.
func (r *Ring) Space() int { return r.max - r.n }

// Write appends as much of p as fits and returns how much that is.
func (r *Ring) Write(p []byte) int {
	p = p[:min(len(p), r.Space())]
	if len(p) == 0 {
		return 0
	}
	r.grow(r.n + len(p))
	at := r.index(r.End())
	k := copy(r.buf[at:], p)
	copy(r.buf, p[k:])
	r.n += len(p)
	return len(p)
}

// At returns the bytes from off that lie together in memory, none when off is
// not in [Base, End). They are valid until the ring is written to or freed from.
func (r *Ring) At(off uint64) []byte {
	if off < r.base || off >= r.End() {
		return nil
	}
	at := r.index(off)
	return r.buf[at:min(len(r.buf), at+int(r.End()-off))]
}

// CopyAt copies bytes from off into p and returns how many.
func (r *Ring) CopyAt(p []byte, off uint64) int {
	n := copy(p, r.At(off))
	if n < len(p) {
		n += copy(p[n:], r.At(off+uint64(n)))
	}
	return n
}

// Free drops the bytes before off; off beyond End frees all.
func (r *Ring) Free(off uint64) {
	if off <= r.base {
		return
	}
	k := min(off-r.base, uint64(r.n))
	r.base += k
	r.n -= int(k)
	if r.n == 0 && len(r.buf) > ringKeep {
		r.buf = nil
	}
}

// Release gives the buffer of an empty ring back: for a stream that has come to rest.
func (r *Ring) Release() {
	if r.n == 0 {
		r.buf = nil
	}
}

func (r *Ring) index(off uint64) int { return int(off & uint64(len(r.buf)-1)) }

// grow makes the buffer hold at least need bytes.
func (r *Ring) grow(need int) {
	if need <= len(r.buf) {
		return
	}
	size := max(ringMin, len(r.buf))
	for size < need {
		size *= 2
	}
	r.resize(size)
}

func (r *Ring) resize(size int) {
	fresh := Ring{buf: make([]byte, size), base: r.base, n: r.n, max: r.max}
	for off := r.base; off < r.End(); {
		off += uint64(copy(fresh.buf[fresh.index(off):], r.At(off)))
	}
	*r = fresh
}
