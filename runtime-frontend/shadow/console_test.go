// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package shadow_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
	"bulkhead/runtime-frontend/shadow"
)

func TestConsoleIsSentOnceRawSizedAndWithItsName(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("long-", 20), "console.sock")
	os.Mkdir(filepath.Dir(path), 0o700)
	dir, _ := os.Open(filepath.Dir(path))
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := start(t, shadow.Spec{Terminal: &shadow.Terminal{ConsoleSocket: path, Width: 81, Height: 25}})
	if err := r.SendConsole(); err != nil { // before anybody accepts
		t.Fatal(err)
	}
	if err := r.Commit(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "/dev/pts/") {
		t.Fatalf("payload %q, %v", buf[:n], err)
	}
	messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(messages) != 1 || len(fds) != 1 {
		t.Fatalf("%d messages, descriptors %v, %v", len(messages), fds, err)
	}
	master := os.NewFile(uintptr(fds[0]), "master")
	ws, err := unix.IoctlGetWinsize(fds[0], unix.TIOCGWINSZ)
	if err != nil || ws.Row != 25 || ws.Col != 81 {
		t.Errorf("size %v, %v", ws, err)
	}
	if tio, err := unix.IoctlGetTermios(fds[0], unix.TCGETS); err != nil || tio.Oflag&unix.OPOST != 0 || tio.Lflag&(unix.ECHO|unix.ICANON) != 0 {
		t.Errorf("not raw: %+v, %v", tio, err)
	}

	worker := dial(t, r.Socket)
	worker.await(t, stdio.TypeHello)
	rows, cols := worker.await(t, stdio.TypeWinsize).Winsize()
	if rows != 25 || cols != 81 {
		t.Errorf("the relay said %d rows, %d columns", rows, cols)
	}
	unix.IoctlSetWinsize(fds[0], unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 132})
	if rows, cols := worker.await(t, stdio.TypeWinsize).Winsize(); rows != 50 || cols != 132 {
		t.Errorf("after the resize %d rows, %d columns", rows, cols)
	}
	master.Close()
	worker.await(t, stdio.TypeHangup)
}

// worker is a bare connection to a relay.
type worker struct{ conn net.Conn }

func dial(t *testing.T, socket string) worker {
	t.Helper()
	conn, err := net.Dial("unixpacket", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.Write(stdio.AppendSimple(nil, stdio.TypeAttach, 0, 0, 0))
	return worker{conn}
}

func (w worker) await(t *testing.T, want stdio.Type) stdio.Frame {
	t.Helper()
	w.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		buf := make([]byte, stdio.MaxFrame)
		n, err := w.conn.Read(buf)
		if err != nil {
			t.Fatalf("waiting for frame type %d: %v", want, err)
		}
		f, err := stdio.Parse(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == want {
			return f
		}
	}
}

func TestNewestWorkerWins(t *testing.T) {
	r := start(t, shadow.Spec{})
	first := dial(t, r.Socket)
	first.await(t, stdio.TypeHello)
	second := dial(t, r.Socket)
	second.await(t, stdio.TypeResume)
	first.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		if n, err := first.conn.Read(make([]byte, 100)); n == 0 || err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the first connection lives on")
			}
			return
		}
	}
}
