// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsThread runs functions on a thread of a network namespace of its own (and of
// a mount namespace, whose /sys is the namespace's).
type netnsThread struct {
	t     testing.TB
	do    chan func()
	sysfs string
	h     *netlink.Handle
	tid   int
}

func newNetns(t testing.TB) *netnsThread {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces are made by root")
	}
	n := &netnsThread{t: t, do: make(chan func()), sysfs: t.TempDir()}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS)
		if err == nil {
			err = errors.Join(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""), unix.Mount("sysfs", n.sysfs, "sysfs", 0, ""))
		}
		n.tid = unix.Gettid()
		ready <- err
		for f := range n.do {
			f()
		}
		_ = unix.Unmount(n.sysfs, unix.MNT_DETACH)
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.do) })
	n.run(func() (err error) { n.h, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
	t.Cleanup(func() { n.h.Close() })
	return n
}

// run runs f in the namespace.
func (n *netnsThread) run(f func() error) {
	n.t.Helper()
	done := make(chan error)
	n.do <- func() { done <- f() }
	if err := <-done; err != nil {
		n.t.Fatal(err)
	}
}

func (n *netnsThread) link(name string) netlink.Link {
	n.t.Helper()
	l, err := n.h.LinkByName(name)
	if err != nil {
		n.t.Fatalf("%s: %v", name, err)
	}
	return l
}

func (n *netnsThread) up(name string, addresses ...string) netlink.Link {
	n.t.Helper()
	l := n.link(name)
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			n.t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := n.h.AddrAdd(l, addr); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := n.h.LinkSetUp(l); err != nil {
		n.t.Fatal(err)
	}
	return l
}

// silent keeps the namespace's own IPv6 off the links made later.
func (n *netnsThread) silent() {
	n.run(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	})
}

func (n *netnsThread) veth(name, peer string, peerNS *netnsThread) {
	n.t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: ownMAC}, PeerName: peer}
	if peerNS != nil {
		v.PeerNamespace = netlink.NsPid(peerNS.tid)
	}
	if err := n.h.LinkAdd(v); err != nil {
		n.t.Fatal(err)
	}
}

// tap makes a tap; what is written to it is what a VM sends, behind a header of 10
// bytes (struct virtio_net_hdr).
func (n *netnsThread) tap(name string) *os.File {
	n.t.Helper()
	var f *os.File
	n.run(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		f = os.NewFile(uintptr(fd), "tap") // only now can it be waited for
		return err
	})
	n.t.Cleanup(func() { f.Close() })
	return f
}

// macvtap makes one upon link and opens it.
func (n *netnsThread) macvtap(name string, link netlink.Link) *os.File {
	n.t.Helper()
	m := &netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: link.Attrs().Index}, Mode: netlink.MACVLAN_MODE_PASSTHRU}}
	if err := n.h.LinkAdd(m); err != nil {
		n.t.Fatal(err)
	}
	var f *os.File
	n.run(func() error {
		found, err := filepath.Glob(filepath.Join(n.sysfs, "class/net", name, "tap*/dev"))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%v: %w", found, err)
		}
		text, err := os.ReadFile(found[0])
		if err != nil {
			return err
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(strings.TrimSpace(string(text)), "%d:%d", &major, &minor); err != nil {
			return err
		}
		node := filepath.Join(n.t.TempDir(), "tap")
		if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil {
			return err
		}
		f, err = os.OpenFile(node, os.O_RDWR|unix.O_NONBLOCK, 0)
		return err
	})
	n.t.Cleanup(func() { f.Close() })
	return f
}

func (n *netnsThread) clsact(l netlink.Link) {
	n.t.Helper()
	err := n.h.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil {
		n.t.Fatal(err)
	}
}

// redirect has all that arrives on one link leave by another.
func (n *netnsThread) redirect(from, to netlink.Link) {
	n.t.Helper()
	err := n.h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: uint32(Ingress), Protocol: unix.ETH_P_ALL, Priority: 100},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: to.Attrs().Index,
		}},
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// capture hears every frame that comes in by a link.
func (n *netnsThread) capture(l netlink.Link) int {
	n.t.Helper()
	fd := -1
	n.run(func() (err error) {
		all := int(be16(unix.ETH_P_ALL))
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: l.Attrs().Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		)
	})
	n.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// heard collects what a capture has until the frame that ends it.
func heard(t testing.TB, fd int, end []byte) map[string]int {
	t.Helper()
	got := map[string]int{}
	buf := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Fatalf("the frame that ends the test did not arrive: %v; before it came %d", err, len(got))
		}
		if a, ok := from.(*unix.SockaddrLinklayer); ok && a.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if string(buf[:n]) == string(end) {
			return got
		}
		got[string(buf[:n])]++
	}
}

// send writes a frame as a VM does.
func send(t testing.TB, tap *os.File, header []byte, frame []byte) {
	t.Helper()
	if header == nil {
		header = make([]byte, 10)
	}
	if _, err := tap.Write(join(header, frame)); err != nil {
		t.Fatalf("%x: %v", frame, err)
	}
}

// receive reads frames that the VM gets until one fits.
func receive(t testing.TB, tap *os.File, what string, fits func([]byte) bool) []byte {
	t.Helper()
	buf := make([]byte, 65536)
	tap.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		n, err := tap.Read(buf)
		if err != nil {
			t.Fatalf("the VM does not get %s: %v", what, err)
		}
		if n > 10 && fits(buf[10:n]) {
			return buf[10:n]
		}
	}
}

// partial is the header of a packet whose checksum the kernel is asked to write.
func partial(start, offset uint16) []byte {
	b := make([]byte, 10)
	b[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	b[6], b[7], b[8], b[9] = byte(start), byte(start>>8), byte(offset), byte(offset>>8)
	return b
}
