// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// lookup asks for a name in a container, by UDP or TCP.
func (d dockerUser) lookup(name, what string, flags ...string) []string {
	d.t.Helper()
	var found []string
	text := d.probe(name, append(append([]string{"-limit", "50s"}, flags...), "lookup", what)...)
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		d.t.Fatalf("lookup %s: %q: %v", what, text, err)
	}
	slices.Sort(found)
	return found
}

func TestContainersFindEachOtherByName(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	network := d.network("--subnet", "10.231.0.0/24")
	near := d.serveOn(runtimeUnderTest(), network, "--network-alias", "harbour")
	far := d.serveOn(runtimeUnderTest(), network)
	other := d.serveOn(neighbour, network)
	addresses := map[string]string{}
	for _, name := range []string{near, far, other} {
		addresses[name] = d.endpoint(name, network, "IPAddress")
	}
	for _, from := range []string{near, other} {
		for _, to := range []string{near, far, other} {
			for _, flags := range [][]string{nil, {"-tcp"}} {
				if got := d.lookup(from, to, flags...); !slices.Equal(got, []string{addresses[to]}) {
					t.Errorf("from %s, %s is %v, %q", from, to, got, flags)
				}
			}
		}
	}
	d.probe(far, "-bytes", "1000000", "upload", "harbour:"+probePort)
	d.probe(far, "-bytes", "1000000", "upload", other+":"+probePort)
	d.probe(other, "-bytes", "1000000", "upload", far+":"+probePort)

	// The very first instruction of a container may ask.
	out := d.do(d.onNetwork(runtimeUnderTest(), network, opts("--rm"), "netprobe", "lookup", "harbour")...)
	expect(t, "what the first instruction is told", strings.TrimSpace(out), `["`+addresses[near]+`"]`)

	if r := d.try("exec", near, "netprobe", "lookup", "nobody.harbour.invalid."); r.Code == 0 {
		t.Errorf("a name that nobody has is found: %s", r.Stdout)
	}
}

// Docker's resolver asks servers of the outside by sockets in the container's namespace.
// An answer that is cut off is asked for again by TCP.
func TestNamesOfTheOutsideAreResolved(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	network := d.network("--subnet", "10.232.0.0/24", "--gateway", "10.232.0.1")
	serveNames(t, d, "10.232.0.1:53")
	name := d.launchOn(runtimeUnderTest(), network, opts("--dns", "10.232.0.1"), "sleep", "1000")
	for _, flags := range [][]string{nil, {"-tcp"}} {
		if got := d.lookup(name, "one.example.test.", flags...); !slices.Equal(got, []string{"192.0.2.1"}) {
			t.Errorf("one name is %v, %q", got, flags)
		}
		if got := d.lookup(name, "many.example.test.", flags...); len(got) != manyAddresses {
			t.Errorf("a long answer has %d addresses, %q", len(got), flags)
		}
	}
}

const manyAddresses = 150 // more than fits into an answer by UDP

// serveNames is a name server beside containers, until the test ends.
func serveNames(t *testing.T, d dockerUser, address string) {
	t.Helper()
	packets, err := d.engine.Net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	streams, err := d.engine.Net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close(); streams.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := answerName(buf[:n], true); reply != nil {
				_, _ = packets.WriteTo(reply, from)
			}
		}
	}()
	go func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			go answerStream(c)
		}
	}()
}

func answerStream(c net.Conn) {
	defer c.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		reply := answerName(query, false)
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// answerName answers a query; one that would be long is cut off.
func answerName(query []byte, short bool) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	reply := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
	count := map[string]int{"one.example.test.": 1, "many.example.test.": manyAddresses}[q.Name.String()]
	switch {
	case count == 0:
		reply.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA && short && count > 1:
		reply.Truncated = true
	case q.Type == dnsmessage.TypeA:
		for i := range count {
			reply.Answers = append(reply.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, byte(i + 1)}},
			})
		}
	}
	packed, err := reply.Pack()
	if err != nil {
		return nil
	}
	return packed
}
