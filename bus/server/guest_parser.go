// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// The limits of what a guest may send. The agent's largest message is a status
// reply; everything bulky travels on the stdio channel.
const (
	maxGuestLine    = 1024     // bytes of a control line
	maxGuestPayload = 64 << 10 // bytes of headers and body
	maxGuestHeader  = 4 << 10  // bytes of headers
	maxGuestSubject = 512
	maxGuestSid     = 20
)

// verb is an operation of the NATS client protocol.
type verb string

const (
	verbConnect verb = "CONNECT"
	verbPing    verb = "PING"
	verbPong    verb = "PONG"
	verbSub     verb = "SUB"
	verbUnsub   verb = "UNSUB"
	verbPub     verb = "PUB"
	verbHPub    verb = "HPUB"
)

// operation is one parsed operation. Its slices are valid until the next.
type operation struct {
	verb    verb
	subject string // SUB, PUB, HPUB
	reply   string // PUB, HPUB, may be empty
	queue   string // SUB, may be empty
	sid     string // SUB, UNSUB
	max     string // UNSUB, may be empty
	connect []byte // CONNECT: its JSON
	header  []byte // HPUB
	body    []byte // PUB, HPUB
}

// opReader parses what a guest sends, far more strictly than nats-server does:
// upper-case verbs, lines that end in CR LF, printable ASCII subjects, one form
// of each operation. The gate never forwards the guest's own lines; it writes
// each operation anew (append), so two parsers cannot read one line differently.
type opReader struct {
	r       *bufio.Reader
	payload []byte // reused
}

func newOpReader(r *bufio.Reader) *opReader { return &opReader{r: r} }

// next reads one operation. Any error but io.EOF between operations and the
// stream's own is a malformedError.
func (p *opReader) next() (operation, error) {
	line, err := p.line()
	if err != nil {
		return operation{}, err
	}
	name, rest, _ := bytes.Cut(line, []byte(" "))
	op := operation{verb: verb(name)}
	if op.verb == verbConnect {
		op.connect = bytes.TrimSpace(rest)
		return op, nil
	}
	args := bytes.FieldsFunc(rest, func(r rune) bool { return r == ' ' })
	switch op.verb {
	case verbPing, verbPong:
		if len(args) != 0 {
			return op, malformed("%s with arguments", op.verb)
		}
		return op, nil
	case verbSub:
		return p.sub(op, args)
	case verbUnsub:
		return p.unsub(op, args)
	case verbPub:
		return p.pub(op, args, 0)
	case verbHPub:
		return p.pub(op, args, 1)
	}
	return op, malformed("unknown operation %.16q", name)
}

// line reads a control line without its CR LF.
func (p *opReader) line() ([]byte, error) {
	line, err := p.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull) || len(line) > maxGuestLine:
		return nil, malformed("a control line longer than %d bytes", maxGuestLine)
	case err == io.EOF && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case len(line) < 2 || line[len(line)-2] != '\r':
		return nil, malformed("a control line that does not end in CR LF")
	}
	return line[:len(line)-2], nil
}

func (p *opReader) sub(op operation, args [][]byte) (operation, error) {
	if len(args) != 2 && len(args) != 3 {
		return op, malformed("SUB with %d arguments", len(args))
	}
	op.subject, op.sid = string(args[0]), string(args[len(args)-1])
	if len(args) == 3 {
		op.queue = string(args[1])
		if !validSubject(op.queue) {
			return op, malformed("SUB with a bad queue name")
		}
	}
	if !validSubject(op.subject) || !validSid(op.sid) {
		return op, malformed("SUB with a bad subject or id")
	}
	return op, nil
}

func (p *opReader) unsub(op operation, args [][]byte) (operation, error) {
	if len(args) != 1 && len(args) != 2 {
		return op, malformed("UNSUB with %d arguments", len(args))
	}
	op.sid = string(args[0])
	if len(args) == 2 {
		n, err := number(args[1])
		if err != nil {
			return op, err
		}
		op.max = strconv.Itoa(n)
	}
	if !validSid(op.sid) {
		return op, malformed("UNSUB with a bad id")
	}
	return op, nil
}

// pub reads PUB (headers 0) and HPUB (headers 1).
func (p *opReader) pub(op operation, args [][]byte, headers int) (operation, error) {
	switch len(args) - headers {
	case 3:
		op.reply = string(args[1])
		if !validSubject(op.reply) {
			return op, malformed("%s with a bad reply subject", op.verb)
		}
	case 2:
	default:
		return op, malformed("%s with %d arguments", op.verb, len(args))
	}
	op.subject = string(args[0])
	if !validSubject(op.subject) {
		return op, malformed("%s with a bad subject", op.verb)
	}
	size, err := number(args[len(args)-1])
	if err != nil {
		return op, err
	}
	if size > maxGuestPayload {
		return op, malformed("a payload of %d bytes, more than %d", size, maxGuestPayload)
	}
	headerSize := 0
	if headers == 1 {
		if headerSize, err = number(args[len(args)-2]); err != nil {
			return op, err
		}
		if headerSize > size || headerSize > maxGuestHeader {
			return op, malformed("headers of %d bytes in a payload of %d; the limit is %d", headerSize, size, maxGuestHeader)
		}
	}
	// The slices of args end here: reading the payload reuses their buffer.
	if cap(p.payload) < size+2 {
		p.payload = make([]byte, size+2)
	}
	p.payload = p.payload[:size+2]
	if _, err := io.ReadFull(p.r, p.payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return op, err
	}
	if string(p.payload[size:]) != "\r\n" {
		return op, malformed("a payload that is not followed by CR LF")
	}
	op.header, op.body = p.payload[:headerSize], p.payload[headerSize:size]
	return op, nil
}

// append writes the operation in the one form that the server is given.
func (op *operation) append(b []byte) []byte {
	b = append(b, op.verb...)
	switch op.verb {
	case verbConnect:
		b = append(append(b, ' '), op.connect...)
	case verbSub:
		b = append(append(b, ' '), op.subject...)
		if op.queue != "" {
			b = append(append(b, ' '), op.queue...)
		}
		b = append(append(b, ' '), op.sid...)
	case verbUnsub:
		b = append(append(b, ' '), op.sid...)
		if op.max != "" {
			b = append(append(b, ' '), op.max...)
		}
	case verbPub, verbHPub:
		b = append(append(b, ' '), op.subject...)
		if op.reply != "" {
			b = append(append(b, ' '), op.reply...)
		}
		if op.verb == verbHPub {
			b = strconv.AppendInt(append(b, ' '), int64(len(op.header)), 10)
		}
		b = strconv.AppendInt(append(b, ' '), int64(len(op.header)+len(op.body)), 10)
		b = append(b, "\r\n"...)
		b = append(b, op.header...)
		b = append(b, op.body...)
	}
	return append(b, "\r\n"...)
}

// number reads a size: at most seven digits and nothing else.
func number(text []byte) (int, error) {
	if len(text) == 0 || len(text) > 7 {
		return 0, malformed("a number of %d digits", len(text))
	}
	n := 0
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, malformed("a number that is none")
		}
		n = n*10 + int(c-'0')
	}
	return n, nil
}

func validSubject(s string) bool {
	if s == "" || len(s) > maxGuestSubject {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func validSid(s string) bool {
	if s == "" || len(s) > maxGuestSid {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') {
			return false
		}
	}
	return true
}

// malformedError is why a guest is cut: what it sent breaks a rule.
type malformedError struct{ rule string }

func (e *malformedError) Error() string { return e.rule }

func malformed(format string, args ...any) error {
	return &malformedError{"it sent " + fmt.Sprintf(format, args...)}
}
