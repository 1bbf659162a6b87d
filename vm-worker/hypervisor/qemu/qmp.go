// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"bulkhead/vm-worker/hypervisor"
)

// maxMessage bounds one QMP message: the longest answers, lists of devices,
// have some 10 KiB.
const maxMessage = 1 << 20

// errQMPClosed says that the monitor's connection has ended. A process that ends closes what it has open first.
var errQMPClosed = fmt.Errorf("qemu has closed its monitor: %w", hypervisor.ErrEnding)

// qmpEvent is what QEMU says by itself, docs/interop/qmp-spec.rst.
type qmpEvent struct {
	Name string
	Data json.RawMessage
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

// qmpMessage is anything QEMU sends after its greeting.
type qmpMessage struct {
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// monitor is a client of QEMU's machine protocol. One goroutine reads; commands
// wait for the answer with their number, in any order.
type monitor struct {
	conn    net.Conn
	onEvent func(qmpEvent) // called by the reader, must not block
	done    chan struct{}  // closed when the reader has ended

	mu      sync.Mutex
	next    uint64                     // guarded by mu
	pending map[uint64]chan qmpMessage // guarded by mu; nil once the reader has ended
}

// openMonitor takes over conn, exchanges the greeting and begins to read.
func openMonitor(ctx context.Context, conn net.Conn, onEvent func(qmpEvent)) (*monitor, error) {
	m := &monitor{conn: conn, onEvent: onEvent, done: make(chan struct{}), pending: map[uint64]chan qmpMessage{}}
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4096), maxMessage)
	greeted := make(chan error, 1)
	go m.read(lines, greeted)
	select {
	case err := <-greeted:
		if err != nil {
			m.close()
			return nil, err
		}
	case <-ctx.Done():
		m.close()
		return nil, fmt.Errorf("waiting for qemu's greeting: %w", ctx.Err())
	}
	if err := m.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// close ends the connection and waits for the reader.
func (m *monitor) close() {
	m.conn.Close()
	<-m.done
}

func (m *monitor) read(lines *bufio.Scanner, greeted chan<- error) {
	defer close(m.done)
	defer m.fail()
	var greeting struct {
		QMP json.RawMessage `json:"QMP"`
	}
	if !lines.Scan() {
		greeted <- fmt.Errorf("waiting for qemu's greeting: %w", orEOF(lines.Err()))
		return
	}
	if err := json.Unmarshal(lines.Bytes(), &greeting); err != nil || greeting.QMP == nil {
		greeted <- errors.New("what answers on the monitor's socket is not qemu")
		return
	}
	greeted <- nil
	for lines.Scan() {
		var msg qmpMessage
		if err := json.Unmarshal(lines.Bytes(), &msg); err != nil {
			return
		}
		if msg.Event != "" {
			m.onEvent(qmpEvent{msg.Event, msg.Data})
			continue
		}
		if msg.ID == nil {
			continue
		}
		m.mu.Lock()
		waiter := m.pending[*msg.ID]
		delete(m.pending, *msg.ID)
		m.mu.Unlock()
		if waiter != nil {
			waiter <- msg // has room for the one answer
		}
	}
}

func orEOF(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fail lets everyone who waits know that no answer will come.
func (m *monitor) fail() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, waiter := range m.pending {
		close(waiter)
	}
	m.pending = nil
}

// execute runs a command and decodes its answer into out, unless that is nil.
func (m *monitor) execute(ctx context.Context, command string, args, out any) error {
	return m.executeWith(ctx, command, args, out, nil)
}

// executeWith is execute for a command that takes a descriptor, which travels
// beside its text.
func (m *monitor) executeWith(ctx context.Context, command string, args, out any, file *os.File) error {
	waiter := make(chan qmpMessage, 1)
	m.mu.Lock()
	if m.pending == nil {
		m.mu.Unlock()
		return fmt.Errorf("qmp %s: %w", command, errQMPClosed)
	}
	m.next++
	id := m.next
	m.pending[id] = waiter
	// Written under the lock, so that commands do not mix. QEMU reads its
	// monitor whatever the guest does; the text is far below the socket's buffer.
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err == nil {
		err = m.write(append(text, '\n'), file)
	}
	m.mu.Unlock()
	if err != nil {
		m.forget(id)
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case <-ctx.Done():
		m.forget(id)
		return fmt.Errorf("qmp %s: no answer from qemu: %w", command, ctx.Err())
	case msg, ok := <-waiter:
		switch {
		case !ok:
			return fmt.Errorf("qmp %s: %w", command, errQMPClosed)
		case msg.Error != nil:
			return fmt.Errorf("qmp %s: %w", command, msg.Error)
		case out == nil:
			return nil
		}
		if err := json.Unmarshal(msg.Return, out); err != nil {
			return fmt.Errorf("qmp %s: understanding the answer: %w", command, err)
		}
		return nil
	}
}

func (m *monitor) write(text []byte, file *os.File) error {
	if file == nil {
		_, err := m.conn.Write(text)
		return err
	}
	conn, ok := m.conn.(*net.UnixConn)
	if !ok {
		return errors.New("descriptors travel on unix sockets only")
	}
	// Not Fd, which would make the owner's descriptor blocking.
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, _, sent = conn.WriteMsgUnix(text, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, sent)
}

func (m *monitor) forget(id uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pending, id)
}
