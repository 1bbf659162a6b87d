// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// parseAll reads operations to the end of the input and writes the accepted ones anew.
func parseAll(input []byte, seen func(*operation)) (out []byte, err error) {
	p := newOpReader(bufio.NewReaderSize(bytes.NewReader(input), 2*maxGuestLine))
	rules := guestRules{inbox: "_INBOX.a."}
	for {
		op, err := p.next()
		if err == nil {
			err = rules.check(&op)
		}
		if err != nil {
			return out, err
		}
		seen(&op)
		out = op.append(out)
	}
}

func TestParserForwardsOneForm(t *testing.T) {
	in := "CONNECT  {\"user\":\"root\"}\r\nPING\r\nSUB  a.b   1\r\nSUB a.b q 2\r\nUNSUB 1 \r\nUNSUB 2 5\r\nPUB a 0\r\n\r\n" +
		"PUB a  _INBOX.a.x 003\r\na\r\n\r\nHPUB a 20 22\r\nNATS/1.0\r\nKey: v\r\n\r\nhi\r\nPONG\r\n"
	want := "CONNECT " + guestConnect + "\r\nPING\r\nSUB a.b 1\r\nSUB a.b q 2\r\nUNSUB 1\r\nUNSUB 2 5\r\nPUB a 0\r\n\r\n" +
		"PUB a _INBOX.a.x 3\r\na\r\n\r\nHPUB a 20 22\r\nNATS/1.0\r\nKey: v\r\n\r\nhi\r\nPONG\r\n"
	out, err := parseAll([]byte(in), func(*operation) {})
	if !errors.Is(err, io.EOF) || string(out) != want {
		t.Errorf("forwarded\n%q, %v; want\n%q", out, err, want)
	}
}

// FuzzGuestParser holds that whatever a guest sends, the parser ends with a
// reason, keeps to its bounds, and forwards only what it would accept and
// forward unchanged again: so the server cannot read it another way.
func FuzzGuestParser(f *testing.F) {
	const hello = "CONNECT {}\r\n"
	for _, seed := range []string{
		"", "PING\r\n", "SUB a 1\r\n", "SUB a q 1\r\nUNSUB 1\r\n", "PUB a 3\r\nabc\r\n", "PUB a _INBOX.a.b 3\r\nabc\r\n",
		"HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", "HPUB a 25 25\r\nNATS/1.0\r\nNats-X: 1\r\n\r\n\r\n", "PUB a 99999999\r\n", "PUB a -1\r\n",
		"PUB  a\t1\r\nx\r\n", "\r\n", "SUB a\x00b 1\r\n", "HPUB a 3 2\r\nab\r\n", "CONNECT {}\r\n", strings.Repeat("a", 3000),
		"PUB a 5\r\nab", "PUB a 2\r\nabc\r\nPING\r\n",
	} {
		f.Add([]byte(hello + seed))
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		out, err := parseAll(input, func(op *operation) {
			if op.reply != "" && !strings.HasPrefix(op.reply, "_INBOX.a.") {
				t.Fatalf("a foreign reply subject was forwarded: %q", op.reply)
			}
			if len(op.header)+len(op.body) > maxGuestPayload || bytes.Contains(bytes.ToLower(op.header), []byte("\nnats-")) {
				t.Fatalf("a forbidden message was forwarded: %q", op.header)
			}
		})
		if err == nil {
			t.Fatal("the parser ended without a reason")
		}
		if len(out) > len(input)+len(guestConnect) {
			t.Fatalf("%d bytes became %d", len(input), len(out))
		}
		again, err := parseAll(out, func(*operation) {})
		if !errors.Is(err, io.EOF) || !bytes.Equal(again, out) {
			t.Fatalf("what was forwarded is read differently the second time: %q became %q, %v", out, again, err)
		}
	})
}

func TestRateSlowsThenCuts(t *testing.T) {
	now := time.Unix(1000, 0)
	var r rate
	// At half the rate, for a minute: never held.
	for range 60 * guestOpsPerSecond / 2 {
		now = now.Add(2 * time.Second / guestOpsPerSecond)
		if wait, flooded := r.take(now, 10); wait != 0 || flooded {
			t.Fatal("held below the rate")
		}
	}
	// A burst after which it waits: held perhaps, not cut.
	for range 20 {
		for range guestOpsPerSecond / 2 {
			wait, flooded := r.take(now, 10)
			if flooded {
				t.Fatal("a burst was taken for a flood")
			}
			now = now.Add(wait)
		}
		now = now.Add(time.Second)
	}
	// As fast as it is let.
	begin, ops := now, 0
	for {
		wait, flooded := r.take(now, 10)
		ops++
		if flooded {
			break
		}
		now = now.Add(wait + time.Microsecond)
	}
	if took := now.Sub(begin); took < floodLimit || took > floodLimit+500*time.Millisecond || ops > 3*guestOpsPerSecond {
		t.Errorf("cut after %v and %d operations", took, ops)
	}
}
