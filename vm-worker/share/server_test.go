// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/bus/handover"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// serve runs a server until the test ends.
func serve(t *testing.T, edit func(*Server)) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "h.sock")
	s, err := Listen(path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	s.uid = uint32(os.Getuid())
	if edit != nil {
		edit(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, path
}

// pipes gives n read ends and their write ends: a write end fails with EPIPE once
// every copy of its read end is closed.
func pipes(t *testing.T, n int) (reads, writes []*os.File) {
	t.Helper()
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		reads, writes = append(reads, r), append(writes, w)
	}
	return reads, writes
}

// closedEverywhere waits until the peer of a write end is gone.
func closedEverywhere(w *os.File) bool {
	raw, err := w.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	_ = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}} // POLLERR is always told
		n, err := unix.Poll(p, 5000)
		closed = err == nil && n == 1 && p[0].Revents&unix.POLLERR != 0
	})
	return closed
}

func TestHandedDescriptorsArriveInOrder(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, handover.MaxPerPacket, handover.MaxPerPacket + 1, 2*handover.MaxPerPacket + 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			s, path := serve(t, nil)
			var files []*os.File
			dir := t.TempDir()
			for i := range n {
				f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				files = append(files, f)
			}
			if err := handover.Send(t.Context(), path, "op-1", files); err != nil {
				t.Fatal(err)
			}
			got, err := s.Claim("op-1")
			if err != nil || len(got) != n {
				t.Fatalf("claimed %d descriptors of %d, %v", len(got), n, err)
			}
			defer closeFiles(got)
			for i := range got {
				a, errA := files[i].Stat()
				b, errB := got[i].Stat()
				if errA != nil || errB != nil || !os.SameFile(a, b) {
					t.Fatalf("descriptor %d is another file: %v %v", i, errA, errB)
				}
			}
			if _, err := s.Claim("op-1"); !errors.Is(err, ErrUnknownToken) {
				t.Errorf("claiming twice gives %v", err)
			}
		})
	}
}

func TestUnclaimedDescriptorsAreClosed(t *testing.T) {
	t.Parallel()
	s, path := serve(t, func(s *Server) { s.expiry = 50 * time.Millisecond })
	reads, writes := pipes(t, 1)
	if err := handover.Send(t.Context(), path, "op-1", reads); err != nil {
		t.Fatal(err)
	}
	reads[0].Close()
	if !closedEverywhere(writes[0]) {
		t.Error("an expired descriptor is still open")
	}
	if _, err := s.Claim("op-1"); !errors.Is(err, ErrUnknownToken) {
		t.Errorf("claiming an expired token gives %v", err)
	}
}

func TestRetriedHandoverReplacesTheFirst(t *testing.T) {
	t.Parallel()
	s, path := serve(t, nil)
	reads, writes := pipes(t, 2)
	for _, r := range reads {
		if err := handover.Send(t.Context(), path, "op-1", []*os.File{r}); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	if !closedEverywhere(writes[0]) {
		t.Error("the replaced descriptor is still open")
	}
	got, err := s.Claim("op-1")
	if err != nil || len(got) != 1 {
		t.Fatalf("claimed %v, %v", got, err)
	}
	closeFiles(got)
}

func TestServerEndClosesWhatItHolds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "h.sock")
	s, err := Listen(path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	reads, writes := pipes(t, 1)
	if err := handover.Send(t.Context(), path, "op-1", reads); err != nil {
		t.Fatal(err)
	}
	reads[0].Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if !closedEverywhere(writes[0]) {
		t.Error("a descriptor outlives the server")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestBadHandoversAreRefusedAndClosed(t *testing.T) {
	t.Parallel()
	_, path := serve(t, nil)
	for _, c := range []struct {
		name    string
		packets []string
		want    string
	}{
		{"not JSON", []string{"hello"}, "not understood"},
		{"no token", []string{`{"last":true}`}, "token is not valid"},
		{"token with a path", []string{`{"token":"../x","last":true}`}, "token is not valid"},
		{"changing token", []string{`{"token":"a"}`, `{"token":"b","last":true}`}, "different tokens"},
		{"too long", []string{`{"token":"` + strings.Repeat("x", handover.MaxPacket) + `"}`}, "larger than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			reads, writes := pipes(t, len(c.packets))
			for i, p := range c.packets {
				if _, _, err := conn.WriteMsgUnix([]byte(p), unix.UnixRights(int(reads[i].Fd())), nil); err != nil {
					t.Fatal(err)
				}
				reads[i].Close()
			}
			buf := make([]byte, handover.MaxPacket)
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			n, err := conn.Read(buf)
			if err != nil || !strings.Contains(string(buf[:n]), c.want) {
				t.Errorf("the answer is %q, %v; want %q in it", buf[:n], err, c.want)
			}
			for _, w := range writes {
				if !closedEverywhere(w) {
					t.Error("a refused descriptor is still open")
				}
			}
		})
	}
}

func TestOtherUsersAreRefused(t *testing.T) {
	t.Parallel()
	_, path := serve(t, func(s *Server) { s.uid = 4321 })
	err := handover.Send(t.Context(), path, "op-1", nil)
	if err == nil || !strings.Contains(err.Error(), "only user 4321") {
		t.Errorf("the answer is %v", err)
	}
}

func TestManyTokensAreRefusedNotKept(t *testing.T) {
	t.Parallel()
	_, path := serve(t, nil)
	for i := range maxTokens {
		if err := handover.Send(t.Context(), path, fmt.Sprint("op-", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := handover.Send(t.Context(), path, "one-more", nil); err == nil || !strings.Contains(err.Error(), "try again") {
		t.Errorf("the answer is %v", err)
	}
}

func TestPathsBelowTheShare(t *testing.T) {
	t.Parallel()
	for path, valid := range map[string]bool{
		"k": true, "k/rootfs": true, "0123abcd-x=2Ey/m12": true,
		"": false, ".": false, "/k": false, "k/": false, "k//m": false, "..": false, "k/../m": false, "./k": false,
		"k\x00": false, strings.Repeat("a", 256): false, "1/2/3/4/5/6/7/8/9": false,
	} {
		if err := checkPath(path); (err == nil) != valid {
			t.Errorf("checkPath(%q) = %v", path, err)
		}
	}
}

func TestOwnThreadIsNeverTheFirst(t *testing.T) {
	t.Parallel()
	for range 200 {
		err := onOwnThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("this is the process's first thread")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
