// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/server"
	vmv1 "bulkhead/proto/vm/v1"
)

// The files of a store at any moment are what a kill at that moment leaves.
func TestAKillBringsNothingBackThatWent(t *testing.T) {
	b := bustest.Start(t)
	records, err := bus.OpenBucket[*vmv1.Sandbox](t.Context(), b.Conn(), bus.BucketSandboxes)
	if err != nil {
		t.Fatal(err)
	}
	const changes = 12 // more than the bucket keeps
	for i := range 8 {
		key := fmt.Sprint("vm-", i)
		for change := range changes {
			if _, err := records.Put(t.Context(), key, &vmv1.Sandbox{Id: key, State: fmt.Sprint(change)}); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			continue
		}
		if err := records.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.CopyFS(filepath.Join(dir, "jetstream"), os.DirFS(filepath.Join(b.RunDir, "jetstream"))); err != nil {
		t.Fatal(err)
	}
	second, err := server.Start(t.Context(), server.Options{Host: bustest.Host, RunDir: dir, Log: bustest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	conn, err := second.ConnInProcess("test")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := conn.JetStream().Stream(t.Context(), "KV_"+bus.BucketSandboxes)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		t.Fatal(err)
	}
	prefix := "$KV." + bus.BucketSandboxes + "."
	for subject, revisions := range info.State.Subjects {
		if subject == prefix+"vm-0" {
			continue
		}
		if revisions != 1 {
			t.Errorf("of %s there are %d revisions, of which one tells that it went", subject, revisions)
		}
	}
	if len(info.State.Subjects) != 8 {
		t.Errorf("the bucket has %d subjects", len(info.State.Subjects))
	}
	after, err := bus.OpenBucket[*vmv1.Sandbox](t.Context(), conn, bus.BucketSandboxes)
	if err != nil {
		t.Fatal(err)
	}
	if sb, _, err := after.Get(t.Context(), "vm-0"); err != nil || sb.State != fmt.Sprint(changes-1) {
		t.Errorf("the record that is there is %v, %v", sb, err)
	}
}
