// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package rehearsal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
)

// broker is a NATS server for one client, as much of one as the agent's connection needs
// (docs.nats.io, "Client Protocol").
type broker struct {
	conn net.Conn
	r    *bufio.Reader

	writing sync.Mutex // one message at a time on conn

	mu            sync.Mutex               // guards all below
	subscriptions map[string]string        // id, by subject
	answers       map[string]chan<- answer // by inbox
	asked         int
	ready         chan struct{} // closed when the agent has said that it serves requests
	isReady       bool
}

// answer is what came to an inbox.
type answer struct {
	header textproto.MIMEHeader
	body   []byte
}

func newBroker(conn net.Conn) *broker {
	return &broker{
		conn: conn, r: bufio.NewReader(conn), subscriptions: map[string]string{}, answers: map[string]chan<- answer{}, ready: make(chan struct{}),
	}
}

// serve answers the client until the connection ends.
func (b *broker) serve() error {
	const info = `INFO {"server_id":"rehearsal","version":"2.10.0","proto":1,"headers":true,"max_payload":1048576}` + "\r\n"
	if err := b.write([]byte(info)); err != nil {
		return err
	}
	for {
		line, err := b.r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("the agent's bus connection: %w", err)
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch last := words[len(words)-1]; words[0] {
		case "PING":
			err = b.write([]byte("PONG\r\n"))
		case "SUB":
			b.mu.Lock()
			b.subscriptions[words[1]] = last
			b.mu.Unlock()
		case "PUB":
			err = b.publish(words[1], "0", last)
		case "HPUB":
			err = b.publish(words[1], words[len(words)-2], last)
		}
		if err != nil {
			return err
		}
	}
}

// publish takes a message of the client's, of which the first head bytes are its header.
func (b *broker) publish(subject, head, size string) error {
	h, err := strconv.Atoi(head)
	if err != nil {
		return fmt.Errorf("the agent's bus connection: %w", err)
	}
	n, err := strconv.Atoi(size)
	if err != nil || n < h {
		return fmt.Errorf("the agent's bus connection: a message of %q bytes", size)
	}
	message := make([]byte, n+len("\r\n"))
	if _, err := io.ReadFull(b.r, message); err != nil {
		return fmt.Errorf("the agent's bus connection: %w", err)
	}
	a := answer{body: message[h:n]}
	if h > 0 {
		_, fields, _ := strings.Cut(string(message[:h]), "\r\n") // after the version
		if a.header, err = textproto.NewReader(bufio.NewReader(strings.NewReader(fields))).ReadMIMEHeader(); err != nil {
			return fmt.Errorf("the agent's bus connection: %w", err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if to, ok := b.answers[subject]; ok {
		delete(b.answers, subject)
		to <- a // it has room for one
	}
	if subject == bus.AgentEventSubject(name, "ready") && !b.isReady {
		b.isReady = true
		close(b.ready)
	}
	return nil
}

func (b *broker) write(p []byte) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	_, err := b.conn.Write(p)
	return err
}

// ask has the agent do something.
func (b *broker) ask(ctx context.Context, method string, request, reply proto.Message) error {
	body, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	select {
	case <-b.ready:
	case <-ctx.Done():
		return fmt.Errorf("%s: the agent is not on the bus: %w", method, ctx.Err())
	}
	answered := make(chan answer, 1)
	subject := bus.AgentSubject(name, method)
	b.mu.Lock()
	b.asked++
	inbox := bus.InboxPrefix(name) + "." + strconv.Itoa(b.asked)
	b.answers[inbox] = answered
	id := b.subscriptions[subject]
	b.mu.Unlock()
	if id == "" {
		return fmt.Errorf("%s: the agent does not serve that", method)
	}
	header := "NATS/1.0\r\n" + bus.HeaderContentType + ": application/protobuf\r\n" + bus.HeaderTimeout + ": 20000\r\n\r\n"
	message := fmt.Appendf(nil, "HMSG %s %s %s %d %d\r\n%s%s\r\n", subject, id, inbox, len(header), len(header)+len(body), header, body)
	if err := b.write(message); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case a := <-answered:
		if text := a.header.Get(bus.HeaderAgentError); text != "" {
			return errors.New(method + ": " + text)
		}
		return proto.Unmarshal(a.body, reply)
	case <-ctx.Done():
		return fmt.Errorf("%s: no answer: %w", method, ctx.Err())
	}
}
