// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	vmv1 "bulkhead/proto/vm/v1"
)

// What JSON makes six times as long must not keep an answer from being sent.
func TestAPartOfManyRecordsCanBeSentInBothEncodings(t *testing.T) {
	b := bustest.Start(t)
	for _, c := range []struct{ name, text string }{
		{"plain", "some annotation"}, {"escaped", strings.Repeat("\x01", 4<<10)}, {"empty", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var told atomic.Int64
			s := newService(t, b.Conn(), bus.ServiceConfig{Name: "list-" + c.name})
			serve(t, s, "list", func(context.Context, *vmv1.ListRequest) (*vmv1.ListReply, error) {
				reply, part := &vmv1.ListReply{}, bus.Part{}
				for i := range 100_000 {
					record := &vmv1.Container{Key: fmt.Sprint(i), Annotations: map[string]string{"a": c.text}}
					if !part.Holds(record) {
						break
					}
					reply.Containers = append(reply.Containers, record)
				}
				told.Store(int64(len(reply.Containers)))
				return reply, nil
			})
			asked, err := proto.Marshal(&vmv1.ListRequest{Root: "/run"})
			if err != nil {
				t.Fatal(err)
			}
			for _, body := range [][]byte{[]byte("{}"), asked} {
				msg, err := b.Conn().NATS().RequestWithContext(t.Context(), bustest.Host+".list-"+c.name+".list", body)
				if err != nil {
					t.Fatal(err)
				}
				if why := msg.Header.Get("Nats-Service-Error"); why != "" || len(msg.Data) < 100<<10 {
					t.Errorf("the answer to %q has %d bytes of %d records and the error %q", body, len(msg.Data), told.Load(), why)
				}
			}
		})
	}
}

func TestAPartHoldsItsFirstRecordsWhateverTheirSize(t *testing.T) {
	var part bus.Part
	large := &vmv1.Container{Bundle: strings.Repeat("b", 1<<20)}
	if !part.Holds(large, large) {
		t.Error("nothing is told of what is too large")
	}
	if part.Holds(&vmv1.Container{Key: "k"}) {
		t.Error("what is full takes more")
	}
}
