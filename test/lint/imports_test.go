// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package lint holds the checks of the house rules that no linter knows.
package lint

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rule says what one room may import of ours. A room is a path prefix below the
// module; the longest prefix that matches a package decides.
type rule struct {
	room string
	may  []string
	why  string
}

var rules = []rule{
	{"proto", []string{"proto"}, "the contracts know nobody but each other"},
	{"bus", []string{"bus", "proto"}, "the bus is beneath every service"},
	{"agent", []string{"agent", "bus", "proto"}, "the guest's agent meets the services on the bus alone"},
	{"runtime-frontend", []string{"runtime-frontend", "bus", "proto"}, "the frontend meets the services on the bus alone"},
	{"runtime-frontend/relay", []string{"runtime-frontend/relay", "bus/stdio"}, "the relay is tiny: no NATS, no protobuf"},
	{"runtime-frontend/cmd/bulkhead-relay", []string{"runtime-frontend/relay", "bus/stdio"}, "the relay is tiny: no NATS, no protobuf"},
	{"vm-worker", []string{"vm-worker", "bus", "proto"}, "services never import each other"},
	{"ksm-worker", []string{"ksm-worker", "bus", "proto"}, "services never import each other"},
	{"services/network", []string{"services/network", "bus", "proto"}, "services never import each other"},
	{"services/host", []string{""}, "the one place that composes the services"},
	{"deploy", []string{"deploy", "bus", "proto"}, "what is deployed is reached as a user reaches it"},
	{"test", []string{"test", "deploy", "bus", "proto"}, "end-to-end tests reach the parts as a user reaches them"},
}

// testsMay is what the tests of a package may import beyond its rule, each for a
// reason that no other room's test has.
var testsMay = []rule{
	{"vm-worker/router", []string{"runtime-frontend/shadow"}, "it joins the two ends of standard streams: its tests hold a real relay, started as the frontend starts it"},
}

func TestRoomsImportOnlyWhatTheirRuleAllows(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "-tags", "netgo osusergo seccomp runc_nocriu", "bulkhead/...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	type pkg struct {
		ImportPath, Dir                    string
		Imports, TestImports, XTestImports []string
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		path := strings.TrimPrefix(p.ImportPath, "bulkhead/")
		r, ok := ruleOf(path)
		if !ok {
			t.Errorf("%s belongs to no room: give it a rule in test/lint", path)
			continue
		}
		for _, imp := range p.Imports {
			check(t, path, imp, r)
		}
		// Tests of a room may use the real bus, and what testsMay says beside the rule.
		for _, m := range testsMay {
			if m.room == path {
				r.may = append(slices.Clone(r.may), m.may...)
			}
		}
		for _, imp := range append(p.TestImports, p.XTestImports...) {
			if within(strings.TrimPrefix(imp, "bulkhead/"), "bus") {
				continue
			}
			check(t, path, imp, r)
		}
	}
	if seen < 10 {
		t.Fatalf("only %d packages listed: the check saw too little to mean anything", seen)
	}
}

func check(t *testing.T, path, imp string, r rule) {
	t.Helper()
	if !strings.HasPrefix(imp, "bulkhead/") {
		return
	}
	imp = strings.TrimPrefix(imp, "bulkhead/")
	for _, may := range r.may {
		if may == "" || within(imp, may) {
			return
		}
	}
	t.Errorf("%s imports %s, but %s: it may import only %v", path, imp, r.why, r.may)
}

func ruleOf(path string) (best rule, ok bool) {
	for _, r := range rules {
		if within(path, r.room) && (!ok || len(r.room) > len(best.room)) {
			best, ok = r, true
		}
	}
	return best, ok
}

func within(path, room string) bool { return path == room || strings.HasPrefix(path, room+"/") }

func TestOnlyTheHostDaemonLinksTheServer(t *testing.T) {
	// The frontend starts once per command: the embedded server would cost it
	// megabytes and milliseconds. The relay runs once per process, and so does the init in the guest.
	for _, c := range []struct{ pkg, forbidden, why string }{
		{"bulkhead/runtime-frontend/cmd/bulkhead", "github.com/nats-io/nats-server", "the command line must start in milliseconds"},
		{"bulkhead/runtime-frontend/cmd/bulkhead-relay", "github.com/nats-io/nats.go", "the relay must stay under 3 MB"},
		{"bulkhead/runtime-frontend/cmd/bulkhead-relay", "google.golang.org/protobuf", "the relay must stay under 3 MB"},
		{"bulkhead/agent/cmd/bulkhead-agent", "github.com/nats-io/nats-server", "the guest holds no server"},
		{"bulkhead/agent/cmd/bulkhead-init", "github.com/nats-io/nats.go", "every process of a container begins as it"},
		{"bulkhead/agent/cmd/bulkhead-init", "google.golang.org/protobuf", "every process of a container begins as it"},
		{"bulkhead/agent/cmd/bulkhead-init", "github.com/hashicorp/go-hclog", "every process of a container begins as it"},
	} {
		out, err := exec.Command("go", "list", "-deps", "-tags", "netgo osusergo seccomp runc_nocriu", c.pkg).Output()
		if err != nil {
			t.Errorf("go list -deps %s: %v", c.pkg, err)
			continue
		}
		for _, dep := range strings.Fields(string(out)) {
			if within(dep, c.forbidden) {
				t.Errorf("%s links %s, but %s", c.pkg, dep, c.why)
			}
		}
	}
}
