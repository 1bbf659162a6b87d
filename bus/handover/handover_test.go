// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package handover_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/bus/handover"
)

// answering is a server that says text to everyone, or nothing when it is empty.
func answering(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "h.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if text != "" {
			_, _ = conn.Write([]byte(text))
		}
		_, _ = conn.Read(make([]byte, 1024)) // the packet
		_, _ = conn.Read(make([]byte, 1024)) // the client's end
	}()
	return path
}

func TestSendTellsWhatWentWrong(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, answer, want string }{
		{"ok", `{"ok":true}`, ""},
		{"refusal", `{"error":"too many"}`, "refused them: too many"},
		{"nonsense", "what?", "not understood"},
		{"neither", "{}", "neither ok nor error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := handover.Send(t.Context(), answering(t, c.answer), "op", nil)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("Send gives %v, want %q", err, c.want)
			}
		})
	}
}

func TestSendEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := handover.Send(ctx, answering(t, ""), "op", nil)
	if err == nil || !strings.Contains(err.Error(), "no answer from the vm service") {
		t.Errorf("Send gives %v", err)
	}
}

func TestSendRefusesBadArguments(t *testing.T) {
	t.Parallel()
	if err := handover.Send(t.Context(), "/missing", "a/b", nil); err == nil || !strings.Contains(err.Error(), "is no token") {
		t.Errorf("a bad token gives %v", err)
	}
	if err := handover.Send(t.Context(), "/missing", "op", make([]*os.File, handover.MaxFiles+1)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too many files give %v", err)
	}
	if err := handover.Send(t.Context(), "/missing/h.sock", "op", nil); err == nil || !strings.Contains(err.Error(), "is the vm service running?") {
		t.Errorf("an absent service gives %v", err)
	}
}

func ExampleValidToken() {
	fmt.Println(handover.ValidToken("01JD3Z8K6V"), handover.ValidToken("../etc"))
	// Output: true false
}
