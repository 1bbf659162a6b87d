// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// serve listens on the ports N for TCP and UDP and N+1 for HTTP, of an address
// ":N", on IPv4 and IPv6. A TCP connection begins with a line that says what to do with it.
func serve(_ context.Context, _ settings, address string) (any, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return nil, err
	}
	web, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port+1)))
	if err != nil {
		return nil, err
	}
	fmt.Println("serving")
	failed := make(chan error, 3)
	go func() { failed <- answerDatagrams(packets) }()
	go func() {
		failed <- http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			name, _ := os.Hostname()
			fmt.Fprintf(w, "%s\n", name)
		}))
	}()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				failed <- err
				return
			}
			go func() {
				defer conn.Close()
				if err := answer(conn.(*net.TCPConn)); err != nil {
					fmt.Fprintln(os.Stderr, "netprobe:", conn.RemoteAddr(), err)
				}
			}()
		}
	}()
	return nil, <-failed
}

// answer is one connection.
func answer(conn *net.TCPConn) error {
	in := bufio.NewReaderSize(conn, blockBytes)
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	words := strings.Fields(line)
	numbers := make([]int64, 3)
	for i := range min(len(words)-1, len(numbers)) {
		if numbers[i], err = strconv.ParseInt(words[i+1], 10, 64); err != nil {
			return err
		}
	}
	switch words[0] {
	case "echo": // what comes, until its end
		if _, err := io.Copy(onlyWriter{conn}, in); err != nil {
			return err
		}
		return conn.CloseWrite()
	case "take": // a content, and tell its sum
		sum, err := takeContent(in, numbers[0])
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(conn, sum)
		return err
	case "give": // a content
		if _, err := giveContent(conn, numbers[0]); err != nil {
			return err
		}
		return conn.CloseWrite()
	case "sink": // bytes, and tell how many in which time
		t, err := sink(in)
		if err != nil {
			return err
		}
		return json.NewEncoder(conn).Encode(t)
	case "source": // bytes for some milliseconds
		return source(conn, time.Duration(numbers[0])*time.Millisecond)
	case "flood": // datagrams of a size to a port there, for some milliseconds, and tell how many
		host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
		if err != nil {
			return err
		}
		how := settings{size: int(numbers[1]), duration: time.Duration(numbers[2]) * time.Millisecond}
		sent, err := flood(context.Background(), how, net.JoinHostPort(host, words[1]))
		if err != nil {
			return err
		}
		return json.NewEncoder(conn).Encode(sent)
	case "reset": // by a RST
		return conn.SetLinger(0)
	}
	return fmt.Errorf("it asks for %q", line)
}

// onlyWriter hides a connection's other methods, so that no splice(2) spares the
// way through this process's memory.
type onlyWriter struct{ io.Writer }

// What a datagram begins with when it is not to be sent back.
const (
	countMark = 'C' // it is to be counted
	askMark   = '?' // the answer is the number of those counted, which starts again
)

const maxDatagram = 1 << 16

func answerDatagrams(packets net.PacketConn) error {
	var counted atomic.Int64
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := packets.ReadFrom(buf)
		if err != nil {
			return err
		}
		reply := buf[:n]
		switch {
		case n > 0 && buf[0] == countMark:
			counted.Add(1)
			continue
		case n > 0 && buf[0] == askMark:
			reply = strconv.AppendInt(nil, counted.Swap(0), 10)
		}
		// The peer may have gone meanwhile, which is its own affair.
		_, _ = packets.WriteTo(reply, from)
	}
}
