// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"bulkhead/test/e2e/engine"
)

// sharedMemory prints the type and the size of /dev/shm.
const sharedMemory = `awk '$2 == "/dev/shm" {print $3}' /proc/mounts; df -k /dev/shm | awk 'NR == 2 {print $2}'`

func TestDockerContainersJoinEachOther(t *testing.T) {
	d := newDocker(t)
	target := d.launch(opts("--ipc", "shareable", "--hostname", "harbour", "--shm-size", "3m"), "sh", "-c", "echo kept > /dev/shm/mark; exec sleep 1000")
	d.says(target, "") // it runs
	from := "container:" + target
	r := d.do(append([]string{"run", "--rm", "--runtime", runtimeUnderTest(), "--network", from, "--ipc", from, "--pid", from},
		engine.Image, "sh", "-c", sharedMemory+`; cat /dev/shm/mark; echo answer > /dev/shm/mark; hostname; ps | grep -c '[s]leep 1000'; `+whereAmI)...)
	want := d.do("exec", target, "sh", "-c", whereAmI)
	lines := strings.Fields(r)
	if len(lines) != 10 {
		t.Fatalf("the container says %q", r)
	}
	expect(t, "the memory that comes with IPC", strings.Join(lines[:3], " "), "tmpfs 3072 kept")
	expect(t, "what the target finds in it", d.do("exec", target, "cat", "/dev/shm/mark"), "answer")
	expect(t, "the host name that comes with the network", lines[3], "harbour")
	expect(t, "the target's processes", lines[4], "1")
	for i, ns := range strings.Fields(want) {
		expect(t, ns+" is shared", lines[5+i] == ns, i != 2 && i != 4)
	}
}
