// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// loopprobe asks what listens at 127.0.0.11:53 and [::1]:7 in every way that a program
// may, and says who answered: a line for each.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

func main() {
	for _, q := range []struct {
		name string
		ask  func() (string, error)
	}{
		{"udp connected", func() (string, error) { return connected("udp4", "127.0.0.11:53", "a") }},
		{"udp unconnected", func() (string, error) { return unconnected("udp4", "0.0.0.0:0", "127.0.0.11:53", "b") }},
		{"udp of both families", func() (string, error) { return unconnected("udp", "[::]:0", "127.0.0.11:53", "c") }},
		{"udp large", func() (string, error) { return connected("udp4", "127.0.0.11:53", strings.Repeat("d", 4000)) }},
		{"tcp", func() (string, error) { return connected("tcp4", "127.0.0.11:53", "e") }},
		{"tcp large", func() (string, error) { return connected("tcp4", "127.0.0.11:53", strings.Repeat("f", 300_000)) }},
		{"tcp over IPv6", func() (string, error) { return connected("tcp6", "[::1]:7", "g") }},
		{"a server of its own", own},
		{"nobody", func() (string, error) { return connected("tcp4", "127.0.0.11:54", "h") }},
	} {
		said, err := q.ask()
		if err != nil {
			said = "error: " + err.Error()
			if strings.Contains(said, "refused") {
				said = "refused"
			}
		}
		fmt.Printf("%s: %s\n", q.name, said)
	}
	if len(os.Args) > 1 { // until it is told to go on
		c, err := net.Dial("tcp4", "127.0.0.11:53")
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Fprint(c, "x")
		io.ReadFull(c, make([]byte, 1))
		fmt.Println("holding")
		_, err = c.Read(make([]byte, 1))
		fmt.Println("cut:", err != nil)
		said, err := connected("udp4", "127.0.0.11:53", "again")
		fmt.Println("again:", said, err)
	}
}

const patience = 20 * time.Second

func connected(network, address, text string) (string, error) {
	c, err := net.Dial(network, address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	go func() {
		io.WriteString(c, text)
		if t, ok := c.(*net.TCPConn); ok {
			t.CloseWrite()
		}
	}()
	var got []byte
	if _, ok := c.(*net.TCPConn); ok {
		got, err = io.ReadAll(c)
	} else {
		got = make([]byte, 65536)
		var n int
		n, err = c.Read(got)
		got = got[:n]
	}
	if err != nil {
		return "", err
	}
	if string(got) != text {
		return fmt.Sprintf("%d bytes of %d", len(got), len(text)), nil
	}
	return "answered by " + c.RemoteAddr().String(), nil
}

func unconnected(network, from, to, text string) (string, error) {
	c, err := net.ListenPacket(network, from)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	addr, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		return "", err
	}
	if _, err := c.WriteTo([]byte(text), addr); err != nil {
		return "", err
	}
	got := make([]byte, 100)
	n, who, err := c.ReadFrom(got)
	if err != nil || string(got[:n]) != text {
		return string(got[:n]), err
	}
	return "answered by " + who.String(), nil
}

// own is a server on all addresses at the same port, asked by another address.
func own() (string, error) {
	l, err := net.ListenPacket("udp4", "0.0.0.0:53")
	if err != nil {
		return "", err
	}
	defer l.Close()
	go func() {
		b := make([]byte, 10)
		n, from, err := l.ReadFrom(b)
		if err == nil {
			l.WriteTo(b[:n], from)
		}
	}()
	return connected("udp4", "127.0.0.1:53", "i")
}
