// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	flows "bulkhead/bus/loopback"
)

// packets is a UDP socket that programs send to; each address they send from is a flow.
type packets struct {
	f      *Forwarder
	target flows.Target
	conn   *net.UDPConn

	mu    sync.Mutex // guards peers
	peers map[netip.AddrPort]*peer
}

// waiting is how many datagrams of a peer wait to be carried.
const waiting = 32

func (p *packets) serve() {
	defer p.closeAll()
	buf := make([]byte, flows.MaxDatagram+1)
	for {
		n, from, err := p.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if n > flows.MaxDatagram {
			continue // docs/limits.md
		}
		p.deliver(from, append([]byte(nil), buf[:n]...))
	}
}

// deliver gives a datagram to the flow of its sender, which is opened if there is none.
func (p *packets) deliver(from netip.AddrPort, b []byte) {
	p.mu.Lock()
	peer := p.peers[from]
	fresh := peer == nil
	if fresh {
		peer = newPeer(p, from)
		p.peers[from] = peer
	}
	p.mu.Unlock()
	select {
	case peer.in <- b:
	default: // as a socket whose buffer is full
	}
	if fresh {
		p.f.open(p.target, peer)
	}
}

func (p *packets) closeAll() {
	p.mu.Lock()
	all := p.peers
	p.peers = map[netip.AddrPort]*peer{}
	p.mu.Unlock()
	for _, peer := range all {
		peer.Close()
	}
}

// peer is a program's UDP socket, seen from the one that it sends to. It is a Conn.
type peer struct {
	p    *packets
	from netip.AddrPort
	in   chan []byte
	done chan struct{}
	once sync.Once
}

func newPeer(p *packets, from netip.AddrPort) *peer {
	return &peer{p: p, from: from, in: make(chan []byte, waiting), done: make(chan struct{})}
}

func (r *peer) Read(b []byte) (int, error) {
	select {
	case m := <-r.in:
		return copy(b, m), nil
	case <-r.done:
		return 0, net.ErrClosed
	}
}

func (r *peer) Write(b []byte) (int, error) { return r.p.conn.WriteToUDPAddrPort(b, r.from) }

func (r *peer) Close() error {
	r.once.Do(func() {
		close(r.done)
		r.p.mu.Lock()
		if r.p.peers[r.from] == r {
			delete(r.p.peers, r.from)
		}
		r.p.mu.Unlock()
	})
	return nil
}
