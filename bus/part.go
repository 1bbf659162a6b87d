// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// mostTold is how much of records one answer holds. The bus takes a MiB, and the rest of an
// answer is small.
const mostTold = 768 << 10

// Part counts what one answer holds of records that may be too many for it: the others come
// when the caller asks again. The zero Part is empty.
type Part struct {
	size   int
	buffer []byte
}

// Holds says whether these records, which are told together, go into the answer as well. The first
// always do. What counts is their JSON: it is the longer encoding, by how much depends on
// what they hold, and where an answer ends does not depend on who asks.
func (p *Part) Holds(records ...proto.Message) bool {
	more := 0
	for _, r := range records {
		// A text that is not UTF-8 has no JSON; then the answer has none either, and says so.
		p.buffer, _ = protojson.MarshalOptions{}.MarshalAppend(p.buffer[:0], r)
		more += max(len(p.buffer), proto.Size(r)) + len(", ")
	}
	if p.size > 0 && p.size+more > mostTold {
		return false
	}
	p.size += more
	return true
}
