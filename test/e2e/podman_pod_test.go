// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"bulkhead/test/e2e/engine"
)

// pod makes a pod; it is removed, with its containers, after the test.
func (p podmanUser) pod(network string, options ...string) string {
	p.t.Helper()
	name := newID("pod")
	id := ""
	p.t.Cleanup(func() {
		p.client().cleanUp(nil, "pod", "rm", "--force", "--ignore", "--time", "0", name)
		if err := p.podman.RemovePodCgroup(id); err != nil {
			p.t.Error(err)
		}
	})
	id = p.do(append([]string{
		"pod", "create", "--name", name, "--network", network, "--cgroup-parent", p.podman.CgroupParent(),
		"--infra-image", engine.PodmanImage, "--infra-command", "/bin/sleep 1000000",
	}, options...)...)
	return name
}

func TestPodmanPodsAreOneVM(t *testing.T) {
	p := newPodman(t)
	pod := p.pod("none", "--hostname", "harbour", "--share", "net,ipc,uts,pid")
	member := func(command string) string {
		return p.launch(opts("--pod", pod), "sh", "-c", command)
	}
	one := member("sleep 1000; exit 0")
	two := member("exec sleep 2000")
	if out := p.do("exec", two, "sh", "-c", "hostname; ps"); !strings.HasPrefix(out, "harbour\n") || !strings.Contains(out, "sleep 1000") || !strings.Contains(out, "sleep 2000") {
		t.Errorf("a member sees %q", out)
	}
	here := strings.Fields(p.do("exec", one, "sh", "-c", whereAmI))
	there := strings.Fields(p.do("exec", two, "sh", "-c", whereAmI))
	if len(here) != 5 || len(there) != 5 {
		t.Fatalf("the namespaces are %v and %v", here, there)
	}
	for i, ns := range here {
		expect(t, ns+" is shared", there[i] == ns, i != 4)
	}
	p.do("exec", one, "sh", "-c", "echo kept > /dev/shm/mark")
	expect(t, "the memory of another member", p.do("exec", two, "sh", "-c", sharedMemory+"; cat /dev/shm/mark"), "tmpfs\n64000\nkept")
	p.do("stop", "--time", "0", one)
	expect(t, "the state of the other member", p.inspect(two, ".State.Status"), "running")
	p.do("start", one) // into the VM that lives
	expect(t, "the namespaces of the member that came back", p.do("exec", one, "readlink", "/proc/self/ns/ipc"), here[1])
	p.do("pod", "rm", "--force", "--time", "0", pod)
}
