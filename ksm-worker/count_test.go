// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Counting reads a file of each VM: done at each of their starts, it would cost as much as the square of their number.
func TestPagesOfManyVMsAreNotCountedAtEachStart(t *testing.T) {
	t.Parallel()
	const count, pages = 500, 100
	m := newModel(t, nil)
	c, err := newController(kernel{m.sysfs}, &proc{dir: m.proc}, t.TempDir(), modeAuto, 60, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	c.now = func() time.Time { return m.at }
	start := func(pid int) {
		m.write(m.proc, fmt.Sprint(pid, "/status"), fmt.Sprintf("RssAnon: %d kB", pages*int(pageSize>>10)))
		c.come(vm{fmt.Sprint("vm-", pid), pid, uint64(pid)})
	}
	expect := func(when string, vms int64) {
		t.Helper()
		if err := c.look(); err != nil {
			t.Fatal(err)
		}
		if got := c.last.seen.vmPages; got != vms*pages {
			t.Errorf("%s %d pages are counted, not those of %d VMs", when, got, vms)
		}
	}
	for i := range count {
		start(1000 + i)
	}
	expect("at first", count)
	start(2000)
	expect("in the same moment", count)
	m.at = m.at.Add(3 * time.Second)
	expect("soon after", count+1)
	start(2001)
	m.at = m.at.Add(3 * time.Second)
	expect("when starts are rare", count+2)
}
