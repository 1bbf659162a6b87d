// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"strconv"
	"strings"
	"unicode"
)

// itoa is for the attributes of events, which are text.
func itoa[T int | int32 | uint32](n T) string { return strconv.FormatInt(int64(n), 10) }

func boolText(b bool) string {
	if b {
		return "true"
	}
	return ""
}

// printable cuts and cleans a text that came from a guest, so that it cannot
// forge lines of a log or move a terminal's cursor.
func printable(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}
