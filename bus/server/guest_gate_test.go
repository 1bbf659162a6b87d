// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestAnswersNobodyAskedForAreNoWayPastTheRate is the flood of a guest that
// reads nothing, so that the refusals of the server cannot be counted.
func TestAnswersNobodyAskedForAreNoWayPastTheRate(t *testing.T) {
	t.Parallel()
	guest, guestEnd := net.Pipe()
	server, serverEnd := net.Pipe()
	defer guest.Close()
	defer server.Close()
	g := &gate{
		sandbox: "a", guest: guestEnd, reader: bufio.NewReaderSize(guestEnd, 2*maxGuestLine), server: serverEnd,
		done: make(chan struct{}), rules: guestRules{inbox: "_INBOX.a."},
	}
	ended := make(chan error, 1)
	go func() { ended <- g.run() }()
	if _, err := bufio.NewReader(guest).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	var passed int64
	go func() { _, _ = io.WriteString(server, "PING\r\n") }() // which the guest never takes
	read := make(chan struct{})
	go func() {
		passed, _ = io.Copy(io.Discard, server)
		close(read)
	}()
	began := time.Now()
	flood := strings.Repeat("PUB _R_.nobody.asked 0\r\n\r\n", 200)
	_, _ = io.WriteString(guest, "CONNECT {}\r\n")
	for {
		if _, err := io.WriteString(guest, flood); err != nil {
			break
		}
	}
	// On a machine that stalls, that it reads nothing may be noticed first.
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "flooded") && !strings.Contains(err.Error(), "did not read") {
		t.Errorf("the guest was cut for %v", err)
	}
	took := time.Since(began)
	<-read
	if most := (took.Seconds() + 3) * float64(guestOpsPerSecond*len("PUB _R_.nobody.asked 0\r\n\r\n")); float64(passed) > most {
		t.Errorf("the server was given %d bytes in %v, more than the rate allows", passed, took)
	}
}
