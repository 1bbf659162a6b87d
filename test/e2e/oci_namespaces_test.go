// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// joining makes spec join namespaces of a process, as engines write it.
func joining(spec *specs.Spec, pid int, kinds ...specs.LinuxNamespaceType) *specs.Spec {
	files := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}
	for i, ns := range spec.Linux.Namespaces {
		for _, kind := range kinds {
			if ns.Type == kind {
				file := files[kind]
				if file == "" {
					file = string(kind)
				}
				spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", pid, file)
			}
		}
	}
	return spec
}

// whereAmI prints the namespaces that a process of a container is in.
const whereAmI = `for n in pid ipc uts net mnt; do readlink /proc/self/ns/$n; done`

func TestOCIContainersShareNamespacesInOneVM(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	conn := dial(t, o.host)
	one, all, some := newID("one"), newID("all"), newID("some")
	spec := newSpec("sleep", "1000")
	spec.Hostname = "first"
	first := o.launch(one, spec)

	spec = joining(newSpec("sleep", "1000"), first.PID, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace)
	spec.Hostname = ""
	second := o.launch(all, spec)
	// The host's side agrees: engines look at it and join it in their turn.
	for _, file := range []string{"pid", "ipc", "uts", "net"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", first.PID, file))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", second.PID, file))
		if err != nil || got != theirs {
			t.Errorf("on the host the second container is in %s, %v, and the first in %s", got, err, theirs)
		}
	}
	third := o.launch(some, joining(newSpec("sleep", "1000"), second.PID, specs.IPCNamespace))

	vm := o.sandbox(conn, one)
	for _, id := range []string{all, some} {
		expect(t, "the VM of "+id, o.sandbox(conn, id).GetId(), vm.GetId())
	}
	ofOne, ofAll, ofSome := strings.Fields(o.do("exec", one, "sh", "-c", whereAmI)), strings.Fields(o.do("exec", all, "sh", "-c", whereAmI)), strings.Fields(o.do("exec", some, "sh", "-c", whereAmI))
	if len(ofOne) != 5 || len(ofAll) != 5 || len(ofSome) != 5 {
		t.Fatalf("the namespaces are %v, %v and %v", ofOne, ofAll, ofSome)
	}
	for i, ns := range ofOne {
		expect(t, ns+" of one is shared by all", ofAll[i] == ns, i < 4)
		expect(t, ns+" of one is shared by some", ofSome[i] == ns, i == 1 || i == 3) // a VM has one network
	}
	expect(t, "the host name", o.do("exec", all, "hostname"), "first\n")
	expect(t, "the host name of who shares it not", o.do("exec", some, "hostname"), "bundle\n")
	expect(t, "the processes that those who share them see", o.do("exec", all, "sh", "-c", "ps | grep -c '[s]leep 1000'"), "2\n")
	expect(t, "the processes that the third sees", o.do("exec", some, "sh", "-c", "ps | grep -c '[s]leep 1000'"), "1\n")
	o.do("exec", some, "sh", "-c", "echo mine > /etc/mark")
	expect(t, "another's files", o.cli("exec", all, "cat", "/etc/mark").Code, 1)

	// The end of the first is the end of who shares its processes, and of nobody else.
	o.do("kill", one, "KILL")
	exits(t, first, 137)
	exits(t, second, 137)
	o.do("delete", one)
	o.do("delete", all)
	expect(t, "the status of the third", o.status(some), "running")
	fourth := newID("late")
	late := o.launch(fourth, joining(newSpec("sh", "-c", whereAmI), third.PID, specs.IPCNamespace))
	exits(t, late, 0)
	if out := wholeOutput(t, late); !strings.Contains(out, ofOne[1]+"\n") {
		t.Errorf("the last container is in %q instead of %s", out, ofOne[1])
	}
	o.do("kill", some, "KILL")
	exits(t, third, 137)

	o.fails(1, "it is gone", "create", "--bundle", o.bundle(joining(newSpec("true"), first.PID, specs.IPCNamespace)), newID("bad"))
	o.fails(1, "is the host's own", "create", "--bundle", o.bundle(joining(newSpec("true"), os.Getpid(), specs.UTSNamespace)), newID("bad"))
}
