// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"

	"bulkhead/test/e2e/host"
)

// copies runs a program from so many files that QEMU has more to translate than it has room for: it throws all away, and
// what it had from the process that forked it with the rest.
const copies = `round=0
while [ $round -lt 3 ]; do
	i=0
	while [ $i -lt 25 ]; do
		cat /bin/busybox >/dev/copy$i && chmod 755 /dev/copy$i && (exec -a sh /dev/copy$i -c 'exit 3')
		[ $? = 3 ] || echo copy $i failed
		i=$((i + 1))
	done
	rm /dev/copy*
	round=$((round + 1))
done
echo all ran
exec sleep 600`

// TestAForkedVMThatTranslatesAllAnewGoesOn: also with the table of translations, and the buckets of it, that it was forked with.
func TestAForkedVMThatTranslatesAllAnewGoesOn(t *testing.T) {
	h := newHost(t, "anew", host.Settings{})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, h)
	conn := dial(t, h)
	o := newOCI(t, h)
	awaitPool(t, conn, "")
	if statsOfAll(t, conn).GetStock().GetZygotesPssBytes() == 0 {
		t.Skip("VMs are not forked here")
	}
	id := newID("anew")
	m := o.create(id, newSpec("sh", "-c", copies))
	t.Cleanup(func() { o.remove(id) })
	pid := int(o.sandbox(conn, id).GetPid())
	const some = 32 << 20 // half of the room
	if own := ownTranslations(t, pid); own > some {
		t.Fatalf("before it runs, %d bytes of translated code are the VM's own: it was not forked", own)
	}
	o.do("start", id)
	until(t, m, "all ran\n")
	if said := m.Stdout.String(); said != "all ran\n" {
		t.Errorf("the container says %q", said)
	}
	if own := ownTranslations(t, pid); own < some {
		t.Errorf("only %d bytes of translated code are the VM's own: it has not thrown anything away", own)
	}
	exits(t, o.exec(id, "--process", o.processFile("sh", "-c", "exit 5")), 5)
}

// ownTranslations is how much of what a QEMU has translated, in memory that can be written to and executed, is not shared.
func ownTranslations(t *testing.T, pid int) (sum uint64) {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps")
	if err != nil {
		t.Fatal(err)
	}
	code := false
	for line := range bytes.Lines(text) {
		if words := strings.Fields(string(line)); len(words) >= 5 && strings.Contains(words[0], "-") {
			code = words[1] == "rwxp"
		}
		if own, ok := kilobytes(line, "Private_Dirty:"); ok && code {
			sum += own
		}
	}
	return sum
}
