// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxGuestErrors is how many refusals of the server a guest may collect.
	maxGuestErrors = 32
	// guestWriteTimeout is how long a guest may leave its messages unread.
	guestWriteTimeout = 5 * time.Second
	// answerPrefix begins the reply subjects of requests that crossed accounts.
	answerPrefix = "_R_."
)

// gate stands between one guest and the server: it parses both directions,
// forwards what the rules allow, and ends with a reason when they do not.
type gate struct {
	sandbox string
	guest   net.Conn
	reader  *bufio.Reader // over guest, past the preamble
	server  net.Conn      // past the INFO line
	rules   guestRules
	answers atomic.Int64  // requests handed to the guest that it has not answered
	done    chan struct{} // closed by close
	once    sync.Once
}

// errGuestGone says that the guest itself ended the connection.
var errGuestGone = errors.New("the guest closed the connection")

// run forwards until one side ends, and tells why. Both connections are closed
// when it returns.
func (g *gate) run() error {
	if _, err := g.guest.Write(guestInfo(g.sandbox)); err != nil {
		g.close()
		return errGuestGone
	}
	ended := make(chan error, 2)
	go func() { ended <- g.fromGuest(); g.close() }()
	go func() { ended <- g.toGuest(); g.close() }()
	first, second := <-ended, <-ended
	// The first is the cause and the second its echo, unless the second is the
	// one that knows what the guest did.
	var cut *malformedError
	if !errors.As(first, &cut) && errors.As(second, &cut) {
		return second
	}
	return first
}

// close ends both connections.
func (g *gate) close() {
	g.once.Do(func() {
		close(g.done)
		_ = g.guest.Close()
		_ = g.server.Close()
	})
}

// fromGuest forwards the guest's operations.
func (g *gate) fromGuest() error {
	ops := newOpReader(g.reader)
	var pace rate
	var out []byte
	for {
		op, err := ops.next()
		var bad *malformedError
		if errors.As(err, &bad) {
			return err
		}
		if err != nil {
			return errGuestGone
		}
		if err := g.rules.check(&op); err != nil {
			return err
		}
		out = op.append(out[:0])
		// Answers are paced by the host's questions, as many as it asked.
		var wait time.Duration
		var flooded bool
		if !g.answersRequest(&op) {
			wait, flooded = pace.take(time.Now(), len(out))
		}
		if flooded {
			return &malformedError{fmt.Sprintf("it flooded the bus for more than %v with over %d operations or %d bytes per second", floodLimit, guestOpsPerSecond, guestBytesPerSecond)}
		}
		if !g.pause(wait) {
			return errGuestGone
		}
		if _, err := g.server.Write(out); err != nil {
			return errServerClosed
		}
	}
}

// answersRequest tells whether the operation may be the answer to a request that
// the guest was handed, and counts it. The server checks which one it answers,
// and refuses others; but a guest that does not read is not told so, and must
// not get past its rate with them.
func (g *gate) answersRequest(op *operation) bool {
	if !strings.HasPrefix(op.subject, answerPrefix) {
		return false
	}
	if g.answers.Add(-1) >= 0 {
		return true
	}
	g.answers.Add(1)
	return false
}

// pause holds the guest back; false when the gate was closed meanwhile.
func (g *gate) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-g.done:
		return false
	}
}

// errServerClosed says that the server ended the connection: it was shut down,
// or the guest left its messages unread.
var errServerClosed = errors.New("the bus closed the connection")

// maxLine is more than the longest line that the server says to a guest; what it holds besides is
// passed on in pieces of that size.
const maxLine = 8 << 10

// writers are for the guests that are just spoken to, of many that are not.
var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 32<<10) }}

// toGuest forwards the server's operations, but not what it says of itself.
func (g *gate) toGuest() error {
	r := bufio.NewReaderSize(g.server, maxLine)
	var w *bufio.Writer // nil while there is nothing to say
	refusals := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return errServerClosed
		}
		payload, forward := 0, true
		switch text := string(line); {
		case strings.HasPrefix(text, "INFO"):
			forward = false
		case strings.HasPrefix(text, "MSG ") || strings.HasPrefix(text, "HMSG "):
			fields := strings.Fields(text)
			if payload, err = strconv.Atoi(fields[len(fields)-1]); err != nil {
				return fmt.Errorf("the bus sent a malformed message: %w", err)
			}
			payload += 2
			// MSG subject sid [reply] size; HMSG has the headers' size before it.
			if n := len(fields); (n == 5 && fields[0] == "MSG" || n == 6) && strings.HasPrefix(fields[3], answerPrefix) {
				g.answers.Add(1) // before the guest can answer
			}
		case strings.HasPrefix(text, "-ERR"):
			refusals++
			if strings.Contains(strings.ToLower(text), "maximum subscriptions") {
				return &malformedError{fmt.Sprintf("it made more than %d subscriptions", maxGuestSubs)}
			}
			if refusals > maxGuestErrors {
				return &malformedError{fmt.Sprintf("it was refused more than %d times, last with %s", maxGuestErrors, strings.TrimSpace(text))}
			}
		}
		if err := g.guest.SetWriteDeadline(time.Now().Add(guestWriteTimeout)); err != nil {
			return errGuestGone
		}
		if forward {
			if w == nil {
				w = writers.Get().(*bufio.Writer)
				w.Reset(g.guest)
			}
			if _, err := w.Write(line); err != nil {
				return g.writeError(err)
			}
			if err := copyN(w, r, payload); err != nil {
				return g.writeError(err)
			}
		}
		if w != nil && r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return g.writeError(err)
			}
			w.Reset(nil)
			writers.Put(w)
			w = nil
		}
	}
}

func (g *gate) writeError(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return &malformedError{fmt.Sprintf("it did not read its messages for %v", guestWriteTimeout)}
	}
	return errGuestGone
}

// copyN moves exactly n bytes.
func copyN(w *bufio.Writer, r *bufio.Reader, n int) error {
	for n > 0 {
		chunk, err := r.Peek(min(n, max(1, r.Buffered())))
		if err != nil {
			return err
		}
		if _, err := w.Write(chunk); err != nil {
			return err
		}
		if _, err := r.Discard(len(chunk)); err != nil {
			return err
		}
		n -= len(chunk)
	}
	return nil
}

// guestInfo is all a guest learns of the server: no name, no address, no version
// but its own sandbox's name.
func guestInfo(sandbox string) []byte {
	return fmt.Appendf(nil, "INFO {\"server_id\":\"bulkhead\",\"server_name\":%s,\"version\":\"2.0.0\",\"proto\":1,\"headers\":true,\"max_payload\":%d}\r\n",
		strconv.QuoteToASCII(sandbox), maxGuestPayload)
}
