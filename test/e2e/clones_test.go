// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// manyClones is how many VMs of one template are compared with each other; the driver's own test has 64.
const manyClones = 6

// TestClonesOfATemplateAreStrangers: what is drawn at random, and what tells one boot of a machine from
// another, is another in every VM from the first process on, and the clock is the host's.
func TestClonesOfATemplateAreStrangers(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	conn := dial(t, h)
	awaitTemplate(t, conn)
	bundle := o.bundle(newSpec("sh", "-c", "date +%s; cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; "+
		"head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '; grep -m1 '\\[stack\\]' /proc/self/maps"))
	what := []string{"boot id", "UUID", "random bytes", "stack of a process"}
	seen := map[string]string{}
	clones := 0
	for i := range manyClones {
		id := newID("clone")
		before := time.Now().Unix()
		m := o.createIn(id, bundle)
		clones += fromTemplate(t, conn, o.root, id)
		o.do("start", id)
		exits(t, m, 0)
		lines := strings.Fields(strings.ReplaceAll(strings.TrimSpace(wholeOutput(t, m)), " ", "_"))
		after := time.Now().Unix()
		o.do("delete", id)
		if len(lines) != 1+len(what) {
			t.Fatalf("container %d says %q", i, lines)
		}
		if at, err := strconv.ParseInt(lines[0], 10, 64); err != nil || at < before-1 || at > after+1 {
			t.Errorf("container %d has the time %s, and the host from %d to %d", i, lines[0], before, after)
		}
		for j, value := range lines[1:] {
			key := what[j] + " " + value
			if other, ok := seen[key]; ok {
				t.Errorf("containers %s and %d have the same %s", other, i, key)
			}
			seen[key] = strconv.Itoa(i)
		}
	}
	// Now and then one boots, as the pool and its template are made beside it; not most of them.
	if clones < manyClones/2 {
		t.Errorf("of %d VMs only %d continue from a template", manyClones, clones)
	}
}

// awaitTemplate waits until the host has a template.
func awaitTemplate(t *testing.T, conn *bus.Conn) {
	t.Helper()
	must(t, launchTime, func() error {
		stock, err := bus.Call[vmv1.PoolReply](within(t, commandTime), conn, conn.Subject("vm", "pool"), &vmv1.PoolRequest{})
		if err != nil {
			return err
		}
		for _, made := range stock.GetTemplates() {
			if made.GetState() == "ready" {
				return nil
			}
		}
		return fmt.Errorf("no template is ready: %v", stock)
	})
}

// fromTemplate is 1 when the container's VM continues from a template.
func fromTemplate(t *testing.T, conn *bus.Conn, root, id string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	list, err := bus.Call[vmv1.ListReply](ctx, conn, conn.Subject("vm", "list"), &vmv1.ListRequest{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.GetContainers() {
		for _, s := range list.GetSandboxes() {
			if c.GetRef().GetId() == id && c.GetSandbox() == s.GetId() && s.GetTemplate() != "" {
				return 1
			}
		}
	}
	return 0
}
