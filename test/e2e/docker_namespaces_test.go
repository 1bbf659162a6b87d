// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"bulkhead/test/e2e/engine"
)

func TestDockerContainersJoinEachOther(t *testing.T) {
	d := newDocker(t)
	target := d.launch(opts("--ipc", "shareable", "--hostname", "harbour"), "sh", "-c", "echo kept > /dev/shm/mark; exec sleep 1000")
	d.says(target, "") // it runs
	from := "container:" + target
	r := d.do(append([]string{"run", "--rm", "--runtime", runtimeUnderTest(), "--network", from, "--ipc", from, "--pid", from},
		engine.Image, "sh", "-c", `hostname; ps | grep -c '[s]leep 1000'; `+whereAmI)...)
	want := d.do("exec", target, "sh", "-c", whereAmI)
	lines := strings.Fields(r)
	if len(lines) != 7 {
		t.Fatalf("the container says %q", r)
	}
	expect(t, "the host name that comes with the network", lines[0], "harbour")
	expect(t, "the target's processes", lines[1], "1")
	for i, ns := range strings.Fields(want) {
		expect(t, ns+" is shared", lines[2+i] == ns, i != 2 && i != 4)
	}
}
