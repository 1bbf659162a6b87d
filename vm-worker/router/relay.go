// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/idle"
	"bulkhead/bus/stdio"
)

const (
	// queueMax bounds what waits for one relay: both windows, and room for the
	// headers of small frames. What does not fit is dropped and sent again.
	queueMax = 2*stdio.Window + 256<<10
	// queueKeep is the largest buffer an idle queue lends to others.
	queueKeep = 256 << 10
	// dialTimeout bounds the first exchange with a relay.
	dialTimeout = 5 * time.Second
)

// relayConn is the connection to one relay.
type relayConn struct {
	router  *Router
	channel uint32
	conn    *net.UnixConn

	mu      sync.Mutex // guards all below
	wake    sync.Cond
	waiting []byte // frames, each after its length (u32)
	busy    int    // bytes of frames the writer has taken and not finished
	dropped bool   // frames were lost: SYNC when the queue has run empty
	over    bool   // nothing is written any more
}

// dialRelay connects and exchanges the first frames.
func dialRelay(ctx context.Context, socket string, qemu *os.File) (_ *relayConn, retErr error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return nil, err
	}
	c := &relayConn{conn: conn.(*net.UnixConn)}
	c.wake.L = &c.mu
	defer func() {
		if retErr != nil {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var rights []byte
	if qemu != nil {
		raw, err := qemu.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("using the VM's pidfd: %w", err)
		}
		var sendErr error
		err = raw.Control(func(fd uintptr) {
			rights = syscall.UnixRights(int(fd))
			_, _, sendErr = c.conn.WriteMsgUnix(stdio.AppendSimple(nil, stdio.TypeAttach, 0, 0, 0), rights, nil)
		})
		if err == nil {
			err = sendErr
		}
		if err != nil {
			return nil, fmt.Errorf("sending the VM's pidfd: %w", err)
		}
	} else if _, err := conn.Write(stdio.AppendSimple(nil, stdio.TypeAttach, 0, 0, 0)); err != nil {
		return nil, err
	}
	buf := make([]byte, stdio.HeaderSize+4)
	n, err := conn.Read(buf)
	if err != nil {
		return nil, fmt.Errorf("waiting for its first word: %w", err)
	}
	if f, err := stdio.Parse(buf[:n]); err != nil || f.Type != stdio.TypeHello {
		return nil, fmt.Errorf("its first word is no HELLO")
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return c, nil
}

// enqueue queues a frame; false says that it was dropped. It never blocks.
func (c *relayConn) enqueue(frame []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	if len(c.waiting)+c.busy+len(frame) > queueMax || c.dropped {
		c.dropped = true
		c.wake.Signal()
		return false
	}
	if c.waiting == nil {
		c.waiting = queues.Get().([]byte)
	}
	c.waiting = binary.LittleEndian.AppendUint32(c.waiting, uint32(len(frame)))
	c.waiting = append(c.waiting, frame...)
	c.wake.Signal()
	return true
}

// write sends the queue to the relay.
func (c *relayConn) write() {
	defer c.router.running.Done()
	var taken []byte
	for {
		var resync bool
		taken, resync = c.take(taken)
		if resync {
			c.router.resync(c)
			continue
		}
		if taken == nil {
			return
		}
		for rest := taken; len(rest) > 0; {
			n := 4 + int(binary.LittleEndian.Uint32(rest))
			if _, err := c.conn.Write(rest[4:n]); err != nil {
				c.silence()
				return
			}
			rest = rest[n:]
			c.mu.Lock()
			c.busy = len(rest)
			c.mu.Unlock()
		}
	}
}

// take waits for frames and swaps the queue for the buffer of the last round.
func (c *relayConn) take(used []byte) (frames []byte, resync bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.waiting) == 0 && !c.dropped && !c.over {
		lend(used)
		lend(c.waiting)
		used, c.waiting = nil, nil
		c.wake.Wait()
	}
	if c.over {
		return nil, false
	}
	if len(c.waiting) == 0 {
		c.dropped = false
		return used, true
	}
	frames = c.waiting
	c.waiting, c.busy = used[:0], len(frames)
	return frames, false
}

// queues are the buffers that no relay's queue uses: an idle relay holds none,
// and a busy one does not make a new one for each frame.
var queues = sync.Pool{New: func() any { return make([]byte, 0, 2*stdio.MaxFrame) }}

func lend(queue []byte) {
	if cap(queue) > 0 && cap(queue) <= queueKeep {
		queues.Put(queue[:0]) //nolint:staticcheck // a slice header of allocation for each quiet moment is little
	}
}

// packet is as much as a relay says at once, and a byte more.
type packet [stdio.MaxFrame + 1]byte

// packets are the buffers of the relays that are just being read.
var packets = sync.Pool{New: func() any { return new(packet) }}

// silence ends what is written. A relay that has ended may have left its last words, which
// are still to be read; one that lives hears of the end, and ends the connection.
func (c *relayConn) silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	_ = c.conn.CloseWrite() // a connection that is broken already is as good
}

// close ends the connection; its goroutines end by themselves.
func (c *relayConn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.conn.Close()
	c.wake.Broadcast()
}

// read moves what the relay says to the guest.
func (c *relayConn) read() {
	defer c.router.running.Done()
	var buf []byte // nil while the relay is silent
	take := func() []byte {
		if buf == nil {
			buf = packets.Get().(*packet)[:]
		}
		return buf
	}
	give := func() {
		packets.Put((*packet)(buf))
		buf = nil
	}
	reset := false
	for {
		n, err := idle.Read(c.conn, take, give)
		if errors.Is(err, unix.ECONNRESET) && !reset {
			reset = true // said once, when the relay ended with something of ours unread; its own last words still come
			continue
		}
		if err != nil || n == 0 {
			break
		}
		f, err := stdio.Parse(buf[:n])
		if err != nil {
			c.router.cfg.Log.Error("relay_speaks_nonsense", "channel", c.channel, "error", err)
			break
		}
		stdio.SetChannel(buf, c.channel)
		if guest := c.router.fromRelay(c, f); guest != nil {
			guest.send(buf[:n])
		}
	}
	c.close()
	c.router.relayEnded(c)
}

// fromRelay notes what a relay's frame says and returns the guest it goes to.
func (r *Router) fromRelay(c *relayConn, f stdio.Frame) *guestConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := r.channels[c.channel]
	if ch == nil || ch.relay != c {
		return nil
	}
	switch f.Type {
	case stdio.TypeAck, stdio.TypeResume:
		if f.Stream != stdio.Stdin {
			w := &ch.granted[f.Stream]
			w.known, w.limit = true, max(w.limit, f.Limit())
		}
	case stdio.TypeExitAck:
		if !ch.finished {
			ch.finished = true
			r.remember(ch.id)
		}
	case stdio.TypeData, stdio.TypeEOF, stdio.TypeSignal, stdio.TypeWinsize, stdio.TypeHangup:
	default:
		return nil
	}
	return r.guest
}

// resync makes both ends of a channel restate themselves.
func (r *Router) resync(c *relayConn) {
	sync := stdio.AppendSimple(nil, stdio.TypeSync, 0, c.channel, 0)
	c.enqueue(sync)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone != nil {
		c.enqueue(r.gone)
	}
	r.guest.control(sync)
}

func (r *Router) relayEnded(c *relayConn) {
	r.mu.Lock()
	ch := r.channels[c.channel]
	lost := ch != nil && ch.relay == c && !r.closed
	finished := false
	if lost {
		ch.relay = nil
		finished = ch.finished
	}
	r.mu.Unlock()
	if lost && r.cfg.OnRelayLost != nil {
		r.cfg.OnRelayLost(c.channel, finished)
	}
}
