// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"strings"
	"testing"
)

// TestALabelledContainerIsConfined follows an SELinux label from the bundle into the guest's kernel and back to
// where a person sees it. That the policy denies what it should is shown beside the agent.
func TestALabelledContainerIsConfined(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	const first, second = "system_u:system_r:container_t:s0:c1,c2", "system_u:system_r:container_init_t:s0:c1.c3"
	spec := newSpec("sh", "-c", "cat /proc/self/attr/current; exec sleep 600")
	spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "sandbox"}
	spec.Process.SelinuxLabel = first
	spec.Linux.MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
	id := newID("selinux")
	m := o.launch(id, spec)
	until(t, m, first)
	expect(t, "the state's annotation", o.state(id).Annotations["io.bulkhead.selinux"], first)
	conn := dial(t, h)
	if sb := o.sandbox(conn, id); !sb.GetSelinux() || !slices.Equal(sb.GetMountLabels(), []string{spec.Linux.MountLabel}) {
		t.Errorf("the VM's record says SELinux %v, files %q", sb.GetSelinux(), sb.GetMountLabels())
	}
	for label, args := range map[string][]string{first: nil, second: {"--process-label", second}} {
		args = append(append([]string{"exec"}, args...), id, "cat", "/proc/self/attr/current")
		expect(t, "the label of an exec", strings.TrimRight(o.do(args...), "\x00"), label)
	}
	// A member of the pod has files with a label of its own, so its share is plugged into the running VM.
	member := newSpec("sh", "-c", "echo mine > /file; cat /file /proc/self/attr/current; exec sleep 600")
	member.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": id}
	member.Process.SelinuxLabel = "system_u:system_r:container_t:s0:c3,c4"
	member.Linux.MountLabel = "system_u:object_r:container_file_t:s0:c3,c4"
	until(t, o.launch(newID("member"), member), "mine\n"+member.Process.SelinuxLabel)
	expect(t, "the number of labels of the VM's files", len(o.sandbox(conn, id).GetMountLabels()), 2)
	o.fails(255, `type "httpd_t" is not in the guest's policy`, "exec", "--process-label", "system_u:system_r:httpd_t:s0", id, "true")
	if !strings.Contains(strings.Join(strings.Fields(o.do("features")), ""), `"selinux":{"enabled":true}`) {
		t.Error("features do not claim SELinux")
	}
}
