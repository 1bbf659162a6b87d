// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package share brings host files to guests: it takes detached mounts from
// frontends (Server) and attaches them beneath /share in the mount namespace of
// a VM's process (Attach), from where its 9p device serves them.
//
// It imports bus/handover and nothing else of ours. The invariant to remember:
// a handed mount is in exactly one place, either a descriptor some owner closes
// or a mount in the namespace of one VM; the host's mount table never shows it.
package share

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"bulkhead/bus/handover"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// Bounds of what unclaimed handovers may hold.
const (
	maxTokens      = 128
	maxTotalFiles  = 8192
	maxConnections = 64
	sendTimeout    = 10 * time.Second // from a connection to its last packet
	defaultExpiry  = 30 * time.Second
	acceptRest     = 100 * time.Millisecond // after a failure to accept
)

// ErrUnknownToken says that nothing is held under a token: it was never handed
// over, was claimed before, or has expired.
var ErrUnknownToken = errors.New("nothing was handed over under this token in the last 30 s")

// Server takes descriptors on handover.sock and keeps them under their tokens
// until they are claimed or expire.
type Server struct {
	listener *net.UnixListener
	log      hclog.Logger
	expiry   time.Duration
	uid      uint32

	mu    sync.Mutex
	held  map[string]*parcel // guarded by mu
	files int                // guarded by mu: descriptors in held
	ended bool               // guarded by mu: nothing may be added to held
}

type parcel struct {
	files []*os.File
	timer *time.Timer
}

// Listen makes the socket at path, mode 0600, replacing one that a dead worker
// left behind. Serve must be called to take anything from it.
func Listen(path string, log hclog.Logger) (*Server, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replacing the handover socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listening for handovers at %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("closing the handover socket %s to others: %w", path, err)
	}
	return &Server{listener: l, log: log, expiry: defaultExpiry, held: map[string]*parcel{}}, nil
}

// Serve takes handovers until ctx ends; then it closes the socket and
// everything unclaimed and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	var connections sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer func() {
		stop()
		cancel()
		s.listener.Close()
		connections.Wait()
		s.closeAll()
	}()
	slots := make(chan struct{}, maxConnections)
	for {
		conn, err := s.listener.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accepting a handover: %w", err)
		}
		if err != nil {
			// Out of descriptors, most likely: those that end make room, and a host full
			// of containers must not lose its vm service for it.
			s.log.Error("accepting a handover failed", "error", err)
			select {
			case <-time.After(acceptRest):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			s.answer(conn, handover.Answer{Error: fmt.Sprintf("%d handovers are under way, try again", maxConnections)})
			conn.Close()
			continue
		}
		connections.Go(func() {
			defer func() { <-slots }()
			s.take(ctx, conn)
		})
	}
}

// Claim returns the descriptors handed over under token, in their order; they
// are the caller's to close from here. A token can be claimed once.
func (s *Server) Claim(token string) ([]*os.File, error) {
	p := s.remove(token)
	if p == nil {
		return nil, fmt.Errorf("claiming the mounts of operation %q: %w", token, ErrUnknownToken)
	}
	return p.files, nil
}

// take serves one connection.
func (s *Server) take(ctx context.Context, conn *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(sendTimeout))
	token, files, err := s.receive(conn)
	if err == nil {
		err = s.keep(token, files)
	}
	if err != nil {
		closeFiles(files)
		s.log.Warn("handover refused", "error", err)
		s.answer(conn, handover.Answer{Error: err.Error()})
		drain(conn)
		conn.Close()
		return
	}
	s.log.Debug("handover taken", "token", token, "descriptors", len(files))
	s.answer(conn, handover.Answer{OK: true})
	conn.Close()
}

// drain discards what the client has sent beyond the refused packet, and the
// descriptors with it: closing with packets unread would reset the connection
// before the client has read why it was refused.
func drain(conn *net.UnixConn) {
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	buf := make([]byte, handover.MaxPacket)
	for {
		if n, err := conn.Read(buf); err != nil || n == 0 {
			return
		}
	}
}

func (s *Server) answer(conn *net.UnixConn, a handover.Answer) {
	text, err := json.Marshal(a)
	if err == nil {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, err = conn.Write(text)
	}
	if err != nil {
		s.log.Debug("handover answer not delivered", "error", err)
	}
}

// receive reads the packets of one handover. The files are returned also with
// an error, to be closed.
func (s *Server) receive(conn *net.UnixConn) (token string, files []*os.File, err error) {
	uid, err := peerUID(conn)
	if err != nil {
		return "", nil, err
	}
	if uid != s.uid {
		return "", nil, fmt.Errorf("only user %d may hand over mounts, not user %d", s.uid, uid)
	}
	text := make([]byte, handover.MaxPacket)
	oob := make([]byte, unix.CmsgSpace(4*handover.MaxPerPacket))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(text, oob)
		if err != nil {
			return "", files, fmt.Errorf("reading a handover: %w", err)
		}
		got, err := filesOf(oob[:oobn])
		files = append(files, got...)
		if err != nil {
			return "", files, err
		}
		if flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
			return "", files, fmt.Errorf("a packet is larger than %d bytes and %d descriptors", handover.MaxPacket, handover.MaxPerPacket)
		}
		if n == 0 {
			return "", files, errors.New("the handover ended before its last packet")
		}
		var p handover.Packet
		if err := json.Unmarshal(text[:n], &p); err != nil {
			return "", files, fmt.Errorf("a packet is not understood: %w", err)
		}
		switch {
		case !handover.ValidToken(p.Token):
			return "", files, errors.New("a packet's token is not valid")
		case token != "" && p.Token != token:
			return "", files, errors.New("the packets name different tokens")
		case len(files) > handover.MaxFiles:
			return "", files, fmt.Errorf("more than %d descriptors", handover.MaxFiles)
		}
		token = p.Token
		if p.Last {
			return token, files, nil
		}
	}
}

// keep puts files under token. The same token again replaces what it held: a
// retried create hands over anew what a lost answer left here.
func (s *Server) keep(token string, files []*os.File) error {
	if old := s.remove(token); old != nil {
		closeFiles(old.files)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return errors.New("the vm service is ending")
	case len(s.held) >= maxTokens:
		return fmt.Errorf("%d handovers wait to be claimed, try again in a moment", maxTokens)
	case s.files+len(files) > maxTotalFiles:
		return fmt.Errorf("handovers that wait to be claimed hold %d descriptors, try again in a moment", s.files)
	case s.held[token] != nil:
		return errors.New("the same token is being handed over twice at once")
	}
	p := &parcel{files: files}
	p.timer = time.AfterFunc(s.expiry, func() { s.expire(token, p) })
	s.held[token] = p
	s.files += len(files)
	return nil
}

// remove takes the parcel of token out, if there is one.
func (s *Server) remove(token string) *parcel {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.held[token]
	if p == nil {
		return nil
	}
	p.timer.Stop()
	delete(s.held, token)
	s.files -= len(p.files)
	return p
}

// expire drops p, unless token was claimed or replaced meanwhile.
func (s *Server) expire(token string, p *parcel) {
	s.mu.Lock()
	current := s.held[token] == p
	if current {
		delete(s.held, token)
		s.files -= len(p.files)
	}
	s.mu.Unlock()
	if current {
		closeFiles(p.files)
		s.log.Warn("handover expired unclaimed", "token", token, "descriptors", len(p.files))
	}
}

func (s *Server) closeAll() {
	s.mu.Lock()
	s.ended = true
	held := s.held
	s.held, s.files = map[string]*parcel{}, 0
	s.mu.Unlock()
	for _, p := range held {
		p.timer.Stop()
		closeFiles(p.files)
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func filesOf(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("reading the descriptors of a packet: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, fmt.Errorf("reading the descriptors of a packet: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "handed mount"))
		}
	}
	return files, nil
}

func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("asking who hands over: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("asking who hands over: %w", err)
	}
	return cred.Uid, nil
}
