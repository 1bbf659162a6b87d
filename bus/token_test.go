// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"strings"
	"testing"

	"bulkhead/bus"
)

func TestTokenIsOneTokenAndReadsBack(t *testing.T) {
	for _, tc := range []struct{ id, want string }{
		{"c1", "c1"},
		{"a+b.c", "a=2Bb=2Ec"},
		{"a=b", "a=3Db"},
		{"*", "=2A"},
		{">", "=3E"},
		{"", "="},
		{"ä b/\n", "=C3=A4=20b=2F=0A"},
	} {
		got := bus.Token(tc.id)
		if got != tc.want {
			t.Errorf("Token(%q) = %q, want %q", tc.id, got, tc.want)
		}
		if back, err := bus.Untoken(got); err != nil || back != tc.id {
			t.Errorf("Untoken(%q) = %q, %v", got, back, err)
		}
	}
}

func TestLongIdsAreShortenedButDiffer(t *testing.T) {
	a, b := strings.Repeat("x", 500)+"a", strings.Repeat("x", 500)+"b"
	if len(bus.Token(a)) > 128 || bus.Token(a) == bus.Token(b) {
		t.Errorf("tokens %q and %q", bus.Token(a), bus.Token(b))
	}
	if _, err := bus.Untoken(bus.Token(a)); bus.ReasonOf(err) != bus.InvalidArgument {
		t.Errorf("a shortened token was read back: %v", err)
	}
}

func TestUntokenRefusesWhatTokenDoesNotWrite(t *testing.T) {
	for _, token := range []string{"", "a.b", "=2b", "=61", "a=", "=4", "=GG", "a b", "a*"} {
		if id, err := bus.Untoken(token); err == nil {
			t.Errorf("Untoken(%q) = %q", token, id)
		}
	}
}

func FuzzToken(f *testing.F) {
	for _, seed := range []string{"", "a", "a+b", "=", "=h00", "\x00\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		token := bus.Token(id)
		if strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_=-") != "" || token == "" || len(token) > 128 {
			t.Fatalf("Token(%q) = %q", id, token)
		}
		if back, err := bus.Untoken(token); err == nil && back != id {
			t.Fatalf("Token(%q) reads back as %q", id, back)
		} else if err != nil && len(id) < 40 {
			t.Fatalf("Token(%q) does not read back: %v", id, err)
		}
	})
}

func TestContainerKey(t *testing.T) {
	if a, b := bus.ContainerKey("/run/a", "c"), bus.ContainerKey("/run/b", "c"); a == b {
		t.Errorf("the same id under two roots has one key %q", a)
	}
	if a, b := bus.ContainerKey("/run/a/", "c.1"), bus.ContainerKey("/run/a", "c.1"); a != b || !strings.HasSuffix(a, "-c=2E1") || len(a) != 8+1+5 {
		t.Errorf("keys %q and %q", a, b)
	}
}

func TestIdsCannotWidenSubjects(t *testing.T) {
	for subject, want := range map[string]string{
		bus.Subject("h", "vm", "create"):        "h.vm.create",
		bus.AgentSubject("a.>", "x"):            "agent.a=2E=3E.rpc.x",
		bus.AgentEventSubject("a", ">"):         "agent.a.ev.>",
		bus.EventSubject("h", "c", "a.*", "up"): "ev.h.c.a=2E=2A.up",
		bus.EventSubject("h", "", "", ""):       "ev.h.*.*.*",
	} {
		if subject != want {
			t.Errorf("%q, want %q", subject, want)
		}
	}
}
