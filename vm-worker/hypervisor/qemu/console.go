// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Names and bounds of the console's log: the newest half is in console.log, the
// one before in console.log.1.
const (
	consoleFile = "console.log"
	consoleHalf = 64 << 10
)

// console keeps the end of what the guest says on its serial port.
//
// A hostile guest may write there without end, so the log is bounded here and
// not written by QEMU, whose file chardev never rotates. QEMU drops what the
// guest says while no worker is connected; that is the price, paid only between
// the death of one worker and the start of the next.
type console struct {
	dir  string
	conn net.Conn
	done chan struct{} // closed when the connection has ended and all is kept

	mu   sync.Mutex
	tail []byte   // guarded by mu: the newest two halves are at its end
	file *os.File // guarded by mu: nil after a write error
	size int      // guarded by mu: bytes in file
}

// openConsole begins to keep what comes from conn, after what an earlier
// worker kept in dir.
func openConsole(dir string, conn net.Conn) *console {
	c := &console{dir: dir, conn: conn, done: make(chan struct{})}
	c.tail = loadTail(dir)
	path := filepath.Join(dir, consoleFile)
	// A log that cannot be written is no reason to refuse a VM: the tail in
	// memory serves its reports.
	if f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		c.file = f
		if st, err := f.Stat(); err == nil {
			c.size = int(st.Size())
		}
	}
	go c.read()
	return c
}

// loadTail reads what the logs in dir hold.
func loadTail(dir string) []byte {
	var tail []byte
	for _, name := range []string{consoleFile + ".1", consoleFile} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			tail = append(tail, b...)
		}
	}
	return tail
}

// consoleRest is how long what the guest says is left to gather before it is
// read: QEMU passes a serial port on byte by byte, and a guest that floods it
// shall not cost the host a system call for each. Until then it waits in the
// socket, whose room is QEMU's to bear.
const consoleRest = 2 * time.Millisecond

func (c *console) read() {
	defer close(c.done)
	buf := make([]byte, 32<<10)
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		<-rest.C
		n, err := c.conn.Read(buf)
		c.keep(buf[:n])
		if err != nil {
			break
		}
		if n == len(buf) { // a backlog is not left to grow
			rest.Reset(0)
		} else {
			rest.Reset(consoleRest)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
}

func (c *console) keep(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(b) == 0 {
		return
	}
	// Cut to two halves when there are four, so that a byte is moved once at most.
	if c.tail = append(c.tail, b...); len(c.tail) > 4*consoleHalf {
		c.tail = append(c.tail[:0], c.tail[len(c.tail)-2*consoleHalf:]...)
	}
	if c.file == nil {
		return
	}
	if c.size+len(b) > consoleHalf {
		c.rotate()
	}
	if c.file != nil {
		n, err := c.file.Write(b)
		c.size += n
		if err != nil {
			c.file.Close()
			c.file = nil
		}
	}
}

// rotate begins a new half. Called with mu held.
func (c *console) rotate() {
	path := filepath.Join(c.dir, consoleFile)
	err := errors.Join(c.file.Close(), os.Rename(path, path+".1"))
	c.file, c.size = nil, 0
	if err == nil {
		c.file, _ = os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	}
}

// close ends the connection and waits for the reader.
func (c *console) close() {
	c.conn.Close()
	<-c.done
}

// end returns up to n bytes of the end, printable.
func (c *console) end(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return printable(c.tail[max(0, len(c.tail)-n):])
}

// printable drops what could steer a terminal: the guest chose these bytes.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= ' ' && r < 0x7f {
			return r
		}
		return -1
	}, string(b))
}

// panicLine finds the kernel's last word in the console, if it panicked.
func panicLine(text string) string {
	const mark = "Kernel panic - not syncing: "
	i := strings.LastIndex(text, mark)
	if i < 0 {
		return ""
	}
	line, _, _ := strings.Cut(text[i+len(mark):], "\n")
	return strings.TrimSpace(line[:min(len(line), 200)])
}
