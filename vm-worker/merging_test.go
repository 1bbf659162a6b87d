// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"os"
	"strings"
	"testing"

	"bulkhead/bus/config"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

// TestOnlyVMsOfTheHostsOneClassAreMerged: also not by a later container of a pod that would be of another one.
func TestOnlyVMsOfTheHostsOneClassAreMerged(t *testing.T) {
	h := newHost(t, fake.Options{}, func(vm *config.VM) { vm.MergeClass = "shop" })
	create := func(id, pod string, annotations map[string]string) error {
		spec := h.bundle(id, "sleep")
		if pod != "" {
			inPod(spec, pod)
		}
		if spec.Annotations == nil {
			spec.Annotations = map[string]string{}
		}
		for k, v := range annotations {
			spec.Annotations[k] = v
		}
		r := startRelay(t, h.bus.RunDir)
		ctx := operation(t)
		_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, id, r, spec))
		if err != nil {
			r.kill()
			os.Remove(r.socket)
			return err
		}
		r.commit()
		return nil
	}
	class := func(name string) map[string]string { return map[string]string{vmv1.AnnotationTrustClass: name} }
	ksm := func(value string) map[string]string { return map[string]string{vmv1.AnnotationKSM: value} }
	for _, c := range []struct {
		id, pod     string
		annotations map[string]string
		class       string
		mergeable   bool
		says        string
	}{
		{id: "none", class: vmv1.DefaultTrustClass},
		{id: "shop", annotations: class("shop"), class: "shop", mergeable: true},
		{id: "bank", annotations: class("bank"), class: "bank"},
		{id: "out", annotations: map[string]string{vmv1.AnnotationTrustClass: "shop", vmv1.AnnotationKSM: "off"}, class: "shop"},
		{id: "odd", annotations: ksm("maybe"), says: "on or off"},
		{id: "odd", annotations: class("a b"), says: "a class is"},
		{id: "member", pod: "shop", class: "shop", mergeable: true},
		{id: "member", pod: "shop", annotations: class("shop"), class: "shop", mergeable: true},
		{id: "member", pod: "shop", annotations: class("bank"), says: `trust class "bank"`},
		{id: "member", pod: "shop", annotations: ksm("off"), says: "may be merged already"},
		{id: "member", pod: "bank", annotations: ksm("off"), class: "bank"},
	} {
		err := create(c.id, c.pod, c.annotations)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s in pod %q with %v: %v, want %q", c.id, c.pod, c.annotations, err, c.says)
		}
		if err != nil {
			continue
		}
		for _, sb := range h.list().Sandboxes {
			if sb.GetId() == h.state(c.id).Sandbox && (sb.GetTrustClass() != c.class || sb.GetMergeable() != c.mergeable) {
				t.Errorf("%s with %v: class %q, mergeable %v", c.id, c.annotations, sb.GetTrustClass(), sb.GetMergeable())
			}
		}
		if c.pod != "" {
			h.delete(c.id, true)
		}
	}
	for _, id := range []string{"none", "shop", "bank", "out"} {
		h.delete(id, true)
	}
	h.expectNothing()
}
