// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	busv1 "bulkhead/proto/bus/v1"
)

// Files are read of each VM that is told of: read anew in each part for all the VMs that are left, they would cost as much as the
// square of their number.
func TestToTellOfThousandsOfVMsLooksAtEachOnce(t *testing.T) {
	t.Parallel()
	const count, firstPid, over = 3000, 1000, 9
	m := newModel(t, nil)
	c, err := newController(kernel{m.sysfs}, &proc{dir: m.proc}, t.TempDir(), modeObserve, 60, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return fmt.Sprintf("vm-%01000d", i) } // so long that there are parts
	seat := func(i int) vm {
		pid := firstPid + i
		m.write(m.proc, fmt.Sprint(pid, "/ksm_merging_pages"), fmt.Sprint(i))
		start := uint64(pid)
		if i%10 == over { // its number is another process's by now
			start++
		}
		m.write(m.proc, fmt.Sprint(pid, "/stat"), statLine("qemu", 0, start))
		return vm{name(i), pid, uint64(pid)}
	}
	looks := newOpens(t)
	for i := count - 1; i >= 0; i-- {
		c.come(seat(i))
		looks.watch(filepath.Join(m.proc, fmt.Sprint(firstPid+i)))
	}
	looks.take() // those of the set-up
	parts, looked, next, all := 0, 0, 0, count
	for after := ""; parts == 0 || after != ""; parts++ {
		s, err := c.status(&busv1.ServiceStatus{}, after)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := protojson.Marshal(s); err != nil || len(text) >= 1<<20 {
			t.Fatalf("a part has %d bytes, a message of the bus a MiB at most: %v", len(text), err)
		}
		for _, v := range s.Vms {
			if next%10 == over {
				next++
			}
			if v.Sandbox != name(next) || v.MergedBytes != int64(next)*pageSize {
				t.Fatalf("told of is %s with %d merged bytes instead of %s", v.Sandbox, v.MergedBytes, name(next))
			}
			next++
		}
		looked += looks.take()
		if after = s.Next; parts == 0 {
			c.gone(after) // the one that the list goes on after
			c.come(seat(count))
			looks.watch(filepath.Join(m.proc, fmt.Sprint(firstPid+count)))
			looks.take()
			all++
		}
	}
	if next != all || parts < 4 {
		t.Errorf("%d of %d are told of, in %d parts", next, all, parts)
	}
	if looked < all || looked > all+parts { // a part ends at one for which it has no room
		t.Errorf("%d VMs were looked at to tell of %d in %d parts", looked, all, parts)
	}
}

// opens counts how often processes of a fake /proc are looked at.
type opens struct {
	t  *testing.T
	fd int
}

func newOpens(t *testing.T) opens {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return opens{t, fd}
}

func (o opens) watch(process string) {
	o.t.Helper()
	if _, err := unix.InotifyAddWatch(o.fd, filepath.Join(process, "stat"), unix.IN_OPEN); err != nil {
		o.t.Fatal(err)
	}
}

// take is how many there were since it was last asked.
func (o opens) take() (n int) {
	o.t.Helper()
	for buf := make([]byte, 64<<10); ; {
		got, err := unix.Read(o.fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return n
		}
		if err != nil {
			o.t.Fatal(err)
		}
		for at := 0; at < got; n++ { // struct inotify_event of inotify(7)
			if mask := binary.NativeEndian.Uint32(buf[at+4:]); mask&unix.IN_Q_OVERFLOW != 0 {
				o.t.Fatal("more was opened than the kernel counts")
			}
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[at+12:]))
		}
	}
}
