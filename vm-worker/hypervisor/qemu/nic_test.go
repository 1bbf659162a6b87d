// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/vm-worker/hypervisor"
)

// tap is a tap in a network namespace of its own, which ends with the test.
type tap struct {
	queues []*os.File
	do     func(func() error) error // in the namespace
}

func newTap(t *testing.T, name string, queues int) *tap {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("taps need root")
	}
	work, done := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, and the namespace with it
		for fn := range work {
			done <- fn()
		}
	}()
	t.Cleanup(func() { close(work) })
	tap := &tap{do: func(fn func() error) error { work <- fn; return <-done }}
	err := tap.do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		device := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: unix.IFF_TAP, Queues: queues, Flags: unix.IFF_NO_PI | unix.IFF_VNET_HDR}
		if queues > 1 {
			device.Flags |= unix.IFF_MULTI_QUEUE
		}
		if err := netlink.LinkAdd(device); err != nil {
			return err
		}
		tap.queues = device.Fds
		return netlink.LinkSetUp(device)
	})
	if err != nil {
		t.Fatalf("making a tap: %v", err)
	}
	t.Cleanup(tap.close)
	return tap
}

func (tap *tap) close() {
	for _, f := range tap.queues {
		f.Close()
	}
}

// received is how many packets of the guest have come out of the tap.
func (tap *tap) received(t *testing.T, name string) uint64 {
	t.Helper()
	var n uint64
	err := tap.do(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			n = l.Attrs().Statistics.RxPackets
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Cards are plugged into a VM while it boots and while it runs, send through real
// taps, are found by the next worker, and are taken out again, while another stays.
func TestNetworkCardsComeAndGoWhileTheVMRuns(t *testing.T) {
	t.Parallel()
	startedAndForked(t, cardsComeAndGo)
}

func cardsComeAndGo(t *testing.T, driver *Driver, v hypervisor.VM) {
	first, second := newTap(t, "tap0", 2), newTap(t, "tap0", 1)
	t.Cleanup(func() { killVM(t, v) })
	attach := func(id, mac string, tap *tap) {
		t.Helper()
		if err := v.AttachNIC(t.Context(), hypervisor.NIC{ID: id, MAC: mac, Queues: tap.queues}); err != nil {
			t.Fatal(err)
		}
		tap.close() // QEMU has its own
	}
	attach("n2", "02:00:00:00:00:02", first) // the kernel has hardly begun
	c := connect(t, v)
	c.awake(v)
	if got := c.ask("card up 02:00:00:00:00:02"); got != "ok" {
		t.Fatal(got)
	}
	attach("n3", "02:00:00:00:00:03", second)
	if got := c.ask("card up 02:00:00:00:00:03"); got != "ok" {
		t.Fatal(got)
	}
	for i, tap := range []*tap{first, second} { // the guest's kernel looks for IPv6 routers and neighbours by itself
		for limit := time.Now().Add(30 * time.Second); tap.received(t, "tap0") == 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("nothing comes out of tap %d", i)
			}
		}
	}

	third := newTap(t, "tap0", 1)
	for what, nic := range map[string]hypervisor.NIC{
		"is a letter":        {ID: "3", MAC: "02:00:00:00:00:04", Queues: third.queues},
		"no MAC address":     {ID: "n4", MAC: "02:00", Queues: third.queues},
		"has 0 queues":       {ID: "n4", MAC: "02:00:00:00:00:04"},
		"of vhost-net":       {ID: "n4", MAC: "02:00:00:00:00:04", Queues: third.queues, VHost: slices.Concat(third.queues, third.queues)},
		"network card n3":    {ID: "n3", MAC: "02:00:00:00:00:04", Queues: third.queues}, // there is one
		"network card n4: q": {ID: "n4", MAC: "02:00:00:00:00:04", Queues: []*os.File{openDisk(t, os.DevNull, os.O_RDWR)}},
	} {
		if err := v.AttachNIC(t.Context(), nic); err == nil || what != "is a letter" && !strings.Contains(err.Error(), what) {
			t.Errorf("a card that cannot be gives %v, want %q", err, what)
		}
	}

	rec := v.Record()
	v.Release()
	var err error
	if v, err = driver.Adopt(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	want := []hypervisor.PluggedNIC{{ID: "n2", MAC: "02:00:00:00:00:02"}, {ID: "n3", MAC: "02:00:00:00:00:03"}}
	byID := func(a, b hypervisor.PluggedNIC) int { return strings.Compare(a.ID, b.ID) }
	got, err := v.NICs(t.Context())
	if slices.SortFunc(got, byID); err != nil || !slices.Equal(got, want) {
		t.Errorf("the next worker finds %v, %v", got, err)
	}
	for range 2 { // the second time it is gone
		if err := v.DetachNIC(t.Context(), "n2"); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.ask("card gone 02:00:00:00:00:02"); got != "ok" {
		t.Error(got)
	}
	if got, err := v.NICs(t.Context()); err != nil || !slices.Equal(got, want[1:]) {
		t.Errorf("after one was taken out there are %v, %v", got, err)
	}
	// A worker that was killed half way leaves queues without a card, and descriptors of others.
	q := v.(*vm).monitor
	for _, name := range []string{fdName("n2", queueFD, 1), fdName("n2", queueFD, 0)} { // one file twice, but of no netdev yet
		if err := q.executeWith(t.Context(), "getfd", map[string]string{"fdname": name}, nil, third.queues[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.execute(t.Context(), "netdev_add", map[string]any{"type": "tap", "id": netPrefix + "n2", "fds": fdName("n2", queueFD, 0)}, nil); err != nil {
		t.Fatal(err)
	}
	// Of another file: QEMU makes what it is sent blocking, and would stand still in the
	// next read of the netdev that has the file already.
	fourth := newTap(t, "tap0", 1)
	if err := q.executeWith(t.Context(), "getfd", map[string]string{"fdname": fdName("n2", queueFD, 0)}, nil, fourth.queues[0]); err != nil {
		t.Fatal(err)
	}
	if err := v.DetachNIC(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if err := q.execute(t.Context(), "closefd", map[string]string{"fdname": fdName("n2", queueFD, i)}, nil); !isAbsent(err) {
			t.Errorf("descriptor %d of a card that was not made is left: %v", i, err)
		}
	}
	attach("n2", "02:00:00:00:00:02", third) // its name is free again
	if got := c.ask("card up 02:00:00:00:00:02"); got != "ok" {
		t.Error(got)
	}
}
