// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"reflect"
	"testing"
)

func TestSetupSurvivesEncoding(t *testing.T) {
	score := -998
	want := Setup{
		Socket: "x.sock", Terminal: true, Init: true, Rootfs: "/a=b\nc", ReadOnly: true, JoinMount: true,
		Mounts:   []Mount{{Source: "/s", Destination: "/d"}, {Source: "/s2", Destination: "/d2", ReadOnly: true}},
		Hostname: "web", NewCgroupNS: true, OOMScoreAdj: &score,
	}
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeSetup(string(b))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := (Setup{Socket: "a\x00b"}).Encode(); err == nil {
		t.Error("a NUL byte was encoded")
	}
	for _, bad := range []string{"", "socket=../x\x00", "socket=x\x00destination=/d\x00", "socket=x\x00what=1\x00"} {
		if _, err := decodeSetup(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestSignalQueueKeepsOrderAndForgetsOnlyWhatIsAcknowledged(t *testing.T) {
	var q signalQueue
	q.add(15)
	q.add(10)
	q.add(15) // still waiting: once is enough
	q.add(40)
	q.add(40) // real-time signals queue
	take := func() (all []int, last uint64) {
		for {
			seq, n, ok := q.next()
			if !ok {
				return all, last
			}
			all, last = append(all, n), seq
		}
	}
	if all, last := take(); !reflect.DeepEqual(all, []int{15, 10, 40, 40}) || last != 4 {
		t.Fatalf("%v, last %d", all, last)
	}
	q.add(15) // the first is on its way: this is another one
	q.acknowledge(2)
	q.rewind()
	q.acknowledge(9) // never sent
	if all, last := take(); !reflect.DeepEqual(all, []int{40, 40, 15}) || last != 5 {
		t.Fatalf("after the rewind %v, last %d", all, last)
	}
	q.acknowledge(5)
	if len(q.queue) != 0 {
		t.Errorf("%d left", len(q.queue))
	}
	for range 2 * maxSignals {
		q.add(50)
	}
	if len(q.queue) != maxSignals {
		t.Errorf("%d queued", len(q.queue))
	}
}
