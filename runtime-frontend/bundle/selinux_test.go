// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestLabelsThatPassAreThePolicys holds the tables against the policy that goes into the guest's image.
func TestLabelsThatPassAreThePolicys(t *testing.T) {
	text, err := os.ReadFile("../../deploy/guest/selinux/bulkhead.cil")
	if err != nil {
		t.Fatal(err)
	}
	statements := func(pattern string) [][]string {
		return regexp.MustCompile(`(?m)^\(`+pattern+`\)`).FindAllStringSubmatch(string(text), -1)
	}
	// members are the types of an attribute and the other names of these.
	members := func(attribute string) []string {
		types := strings.Fields(statements(`typeattributeset ` + attribute + ` \(([\w ]+)\)`)[0][1])
		for _, alias := range statements(`typealiasactual (\w+) (\w+)`) {
			if slices.Contains(types, alias[2]) {
				types = append(types, alias[1])
			}
		}
		return types
	}
	var users []string
	for _, user := range statements(`user (\w+)`) {
		users = append(users, user[1])
	}
	for _, c := range []struct {
		what        string
		table, want []string
	}{
		{"users", selinuxUsers, users},
		{"types of processes", selinuxProcessTypes, append(members("container_domain"), "spc_t")},
		{"types of files", selinuxFileTypes, members("container_file")},
	} {
		if got, want := slices.Sorted(slices.Values(c.table)), slices.Sorted(slices.Values(c.want)); !slices.Equal(got, want) {
			t.Errorf("%s are %v, the policy has %v", c.what, got, want)
		}
	}
}

func TestLabels(t *testing.T) {
	for label, want := range map[string]string{
		"system_u:system_r:container_t:s0:c1,c2":           "",
		"system_u:system_r:container_init_t:s0":            "",
		"unconfined_u:system_r:spc_t:s0-s0:c0.c1023":       "",
		"system_u:system_r:svirt_lxc_net_t:s0:c124,c675":   "",
		"system_u:system_r:container_kvm_t:s0:c1.c3,c1023": "",
		"container_t":                                 "form user:role:type:level",
		"system_u:system_r:container_t":               "form user:role:type:level",
		"staff_u:system_r:container_t:s0":             "users system_u",
		"system_u:object_r:container_t:s0":            "role must be system_r",
		"system_u:system_r:httpd_t:s0":                `type "httpd_t" is not in the guest's policy`,
		"system_u:system_r:container_file_t:s0":       `type "container_file_t" is not`,
		"system_u:system_r:container_t:s1":            "not a level",
		"system_u:system_r:container_t:s0:c1024":      "not a level",
		"system_u:system_r:container_t:s0:c1,":        "not a level",
		"system_u:system_r:container_t:s0\",x=\"":     "not a level",
		"system_u:system_r:container_t:s0:c1-s0:c1-s": "not a level",
	} {
		err := checkProcessLabel(&specs.Process{SelinuxLabel: label}, Options{SELinux: true})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", label, err, want)
		}
	}
	off := Options{}
	both := &specs.Spec{
		Process: &specs.Process{SelinuxLabel: "system_u:system_r:container_t:s0"},
		Linux:   &specs.Linux{MountLabel: "system_u:object_r:container_file_t:s0"},
	}
	if err := checkSELinux(both, off); err == nil || !strings.Contains(err.Error(), "process.selinuxLabel") ||
		!strings.Contains(err.Error(), "linux.mountLabel") || !strings.Contains(err.Error(), "[vm] selinux = false") {
		t.Errorf("with SELinux off: error %v", err)
	}
	on := Options{SELinux: true}
	if err := checkSELinux(both, on); err != nil {
		t.Error(err)
	}
	both.Mounts = []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/d", Type: "debugfs"}}
	if err := checkSELinux(both, on); err == nil || !strings.Contains(err.Error(), "mounts[1].type: the kernel's one debugfs") {
		t.Errorf("a file system that cannot have the label: error %v", err)
	}
}
