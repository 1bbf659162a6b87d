// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shared is a namespace whose link is joined to a VM's tap, and a neighbour of it
// in another namespace that echoes what it gets on port 5353.
type shared struct {
	ns, neighbour *netnsThread
	vm            *os.File
	far           int
}

func newShared(t *testing.T) *shared {
	s := &shared{ns: newNetns(t), neighbour: newNetns(t)}
	s.ns.veth("link", "far", s.neighbour)
	s.vm = s.ns.tap("tap")
	link, far := s.ns.up("link", "10.0.0.2/24", "fd00::2/64"), s.neighbour.up("far", "10.0.0.1/24", "fd00::1/64")
	s.neighbour.up("lo")
	tap := s.ns.up("tap")
	s.ns.clsact(link)
	s.ns.clsact(tap)
	s.ns.redirect(link, tap)
	s.ns.redirect(tap, link)
	if err := AttachLink(s.ns.h, link, tap); err != nil {
		t.Fatal(err)
	}
	s.far = s.neighbour.capture(far)
	s.neighbour.run(func() error {
		for _, network := range []string{"10.0.0.1", "fd00::1"} {
			p, err := net.ListenPacket("udp", net.JoinHostPort(network, "5353"))
			if err != nil {
				return err
			}
			l, err := net.Listen("tcp", net.JoinHostPort(network, "5353"))
			if err != nil {
				return err
			}
			t.Cleanup(func() { p.Close(); l.Close() })
			go echoPackets(p)
			go echoStreams(l)
		}
		return nil
	})
	return s
}

func echoPackets(p net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		p.WriteTo(buf[:n], from)
	}
}

func echoStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { io.Copy(c, c); c.Close() }()
	}
}

func (s *shared) dial(t *testing.T, in *netnsThread, network, address string) net.Conn {
	t.Helper()
	var c net.Conn
	in.run(func() (err error) {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).Dial(network, address)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

func TestSocketsOfTheNamespaceHearTheirAnswers(t *testing.T) {
	s := newShared(t)
	for _, c := range []struct{ network, address string }{
		{"udp", "10.0.0.1:5353"}, {"tcp", "10.0.0.1:5353"}, {"udp", "[fd00::1]:5353"}, {"tcp", "[fd00::1]:5353"},
	} {
		conn := s.dial(t, s.ns, c.network, c.address)
		buf := make([]byte, 100)
		// The first question also waits for the neighbour's Ethernet address; a datagram may be lost to that.
		for try := 0; ; try++ {
			conn.Write([]byte("question"))
			conn.SetReadDeadline(time.Now().Add(time.Second))
			n, err := conn.Read(buf)
			if err == nil && string(buf[:n]) == "question" {
				break
			}
			if try == 29 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%s %s: %q, %v", c.network, c.address, buf[:n], err)
			}
		}
		conn.Close()
	}
	refused := s.dial(t, s.ns, "udp", "10.0.0.1:1")
	refused.Write([]byte("x"))
	refused.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := refused.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("an error from outside is not heard: %v", err)
	}
}

// Whoever asks for the address, opens a connection to it or sends to a port that no
// conversation of the namespace has, speaks with the VM, and with nobody else.
func TestTheNamespaceNeverAnswersForTheVM(t *testing.T) {
	s := newShared(t)
	var listener net.Listener
	var unconnected net.PacketConn
	s.ns.run(func() (err error) {
		if listener, err = net.Listen("tcp4", "0.0.0.0:8080"); err != nil {
			return err
		}
		unconnected, err = net.ListenPacket("udp4", "0.0.0.0:9999")
		return err
	})
	defer listener.Close()
	defer unconnected.Close()

	to := s.dial(t, s.neighbour, "udp", "10.0.0.2:9999")
	to.Write([]byte("for the vm"))
	receive(t, s.vm, "the question for its address", func(f []byte) bool {
		return string(f[12:14]) == "\x08\x06" && f[21] == 1 && string(f[38:42]) == string(own4.AsSlice())
	})
	send(t, s.vm, nil, arp(2, ownMAC, own4, other4.Prev()))
	// The neighbour takes no answer that names another one: it asked as 10.0.0.1.
	neighbour := [4]byte{10, 0, 0, 1}
	answer := arp(2, ownMAC, own4, other4)
	copy(answer[38:42], neighbour[:])
	send(t, s.vm, nil, answer)
	receive(t, s.vm, "a datagram", func(f []byte) bool {
		return string(f[12:14]) == "\x08\x00" && f[23] == protoUDP && binary.BigEndian.Uint16(f[36:]) == 9999
	})

	go s.neighbour.run(func() error {
		c, err := (&net.Dialer{Timeout: time.Second}).Dial("tcp", "10.0.0.2:8080")
		if err == nil {
			c.Close()
			t.Error("the namespace answered a connection that was the VM's")
		}
		return nil
	})
	receive(t, s.vm, "a connection", func(f []byte) bool {
		return string(f[12:14]) == "\x08\x00" && f[23] == protoTCP && binary.BigEndian.Uint16(f[36:]) == 8080
	})
	s.neighbour.run(func() error { return nil }) // the attempt is over

	// All that came out of the link was the VM's: two answers of ARP, and the end.
	send(t, s.vm, nil, honest)
	for frame := range heard(t, s.far, honest) {
		switch f := []byte(frame); {
		case string(f[12:14]) == "\x08\x06" && f[21] == 2 && frame != string(answer) && frame != string(arp(2, ownMAC, own4, other4.Prev())):
			t.Errorf("somebody else answered: %x", f)
		case string(f[12:14]) == "\x08\x00" && string(f[26:30]) == string(own4.AsSlice()):
			t.Errorf("somebody else sent: %x", f)
		}
	}
}

func TestLinkProgramsAreReplacedAndTakenAway(t *testing.T) {
	s := newShared(t)
	link, tap := s.ns.link("link"), s.ns.link("tap")
	for range 2 {
		if err := AttachLink(s.ns.h, link, tap); err != nil {
			t.Fatal(err)
		}
	}
	if filters, err := s.ns.h.FilterList(link, uint32(Ingress)); err != nil || countBPF(filters) != 1 {
		t.Errorf("%d programs at the link, %v", countBPF(filters), err)
	}
	for range 2 {
		if err := DetachLink(s.ns.h, link); err != nil {
			t.Error(err)
		}
	}
	if filters, err := s.ns.h.FilterList(link, uint32(Ingress)); err != nil || countBPF(filters) != 0 {
		t.Errorf("%d programs at the link, %v", countBPF(filters), err)
	}
}
