// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmv1

import (
	"strings"
	"testing"
)

func TestAGuestsStatisticsAreNumbersWithPlainNames(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{`{}`, true},
		{`{"memory":{"usage":{"limit":18446744073709551615},"raw":{"anon":1}},"hugetlb":{"2MB":{"failcnt":0}},"network_interfaces":[{"Name":"eth0","RxBytes":7}],"more":"x"}`, true},
		{`{"pids":{"current":-1}}`, false},
		{`{"pids":{"current":"1"}}`, false},
		{`{"memory":{"raw":{"a\nb":1}}}`, false},
		{`{"memory":{"raw":{"` + strings.Repeat("a", 65) + `":1}}}`, false},
		{`{"hugetlb":{"\u001b[2J":{}}}`, false},
		{`{"network_interfaces":[{"Name":"eth0 "}]}`, false},
		{`{"blkio":{"ioServiceBytesRecursive":[{"op":"Read\u0000"}]}}`, false},
		{`{"memory":"` + strings.Repeat("a", maxStatsText) + `"}`, false},
		{`stats`, false},
	} {
		if _, err := ReadContainerStats(c.text); (err == nil) != c.ok {
			t.Errorf("%.100s: %v", c.text, err)
		}
	}
}
