// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/test/e2e/host"
)

// pair runs each command line on Bulkhead and on runc.
type pair struct {
	ociUser
	runcRoot string
}

func (p pair) runc(args ...string) host.Result {
	p.t.Helper()
	r, err := host.Run(within(p.t, commandTime), nil, nil, append([]string{"runc", "--root", p.runcRoot}, args...)...)
	if err != nil {
		p.t.Fatalf("runc %s: %v: %s", strings.Join(args, " "), err, r.Stderr)
	}
	return r
}

// same expects the same exit code, and output where there is output.
func (p pair) same(line ...string) (ours, theirs host.Result) {
	p.t.Helper()
	ours, theirs = p.cli(line...), p.runc(line...)
	text := strings.Join(line, " ")
	if ours.Code != theirs.Code {
		p.t.Errorf("%q ends with %d, and with runc %d; they say %q and %q", text, ours.Code, theirs.Code, ours.Stderr, theirs.Stderr)
	}
	if ours.Code == 0 && (ours.Stdout == "") != (theirs.Stdout == "") {
		p.t.Errorf("%q prints %q, and with runc %q", text, ours.Stdout, theirs.Stdout)
	}
	return ours, theirs
}

// Every command and flag of runc, alone and on a container in each of its states,
// ends as runc's does. What differs is a line of docs/limits.md and is not here:
// --preserve-fds, --rootless=true, exec --tty without a terminal.
func TestCommandsEndAsRuncsDo(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	p := pair{o, filepath.Join(t.TempDir(), "runc")}
	for _, line := range []string{
		"", "--help", "-v", "--version", "help", "nosuch", "--debug list", "--criu /x list", "--log-format xml list", "--systemd-cgroup list",
		"list", "list -q", "list --quiet", "list -f json", "list --format=json", "list -f xml", "list extra",
		"state", "state x", "state x y", "start", "start x", "pause x", "resume x", "ps", "ps x", "ps -f json x",
		"kill", "kill x", "kill x 9", "kill -a x KILL", "kill x FOO", "kill x 65",
		"delete", "delete x", "delete -f x", "delete --force x", "delete x y",
		"exec", "exec x", "exec x true", "exec --nosuch x true", "exec --process /nosuch x",
		"update x", "checkpoint", "checkpoint --help", "checkpoint x", "checkpoint --nosuch x",
		"checkpoint --image-path i --work-path w --parent-path p --leave-running --tcp-established --ext-unix-sk --shell-job --lazy-pages --status-fd 3 " +
			"--page-server 1.2.3.4:5 --file-locks --pre-dump --manage-cgroups-mode soft --empty-ns network --auto-dedup x",
		"restore", "restore --help", "restore --nosuch x",
		"restore --console-socket s --image-path i --work-path w --tcp-established --ext-unix-sk --shell-job --file-locks --manage-cgroups-mode soft --bundle /nosuch " +
			"--detach --pid-file p -no-subreaper --no-pivot --empty-ns network --auto-dedup --lazy-pages --lsm-profile apparmor:x --lsm-mount-context y x",
		"create", "create --nosuch x", "create --bundle /nosuch x", "create ../x", "create a/b", "create x y",
		"run", "run --bundle /nosuch x", "run -d -b /nosuch x", "features", "features x", "spec --nosuch", "spec x",
	} {
		p.same(strings.Fields(line)...)
	}

	id := newID("pair")
	bundle := p.bundle(newSpec("sh", "-c", "trap 'exit 7' TERM; trap : USR1; while :; do sleep 0.1; done"))
	t.Cleanup(func() {
		p.remove(id)
		ctx, cancel := context.WithTimeout(context.Background(), commandTime) // the test's is over
		defer cancel()
		if r, err := host.Run(ctx, nil, nil, "runc", "--root", p.runcRoot, "delete", "--force", id); err != nil || r.Code != 0 {
			t.Errorf("runc delete --force: code %d, %v: %s", r.Code, err, r.Stderr)
		}
	})
	create := []string{"create", "--bundle", bundle, "--no-pivot", "--no-new-keyring", "--pid-file", filepath.Join(p.dir, "pid"), id}
	m, err := host.Monitor(within(t, launchTime), filepath.Join(p.dir, "pid"), p.host.Args(p.root, create...)...)
	if err != nil || m.Code != 0 {
		t.Fatalf("create: %v, %d: %s", err, m.Code, m.Stderr)
	}
	theirs, err := host.Monitor(within(t, launchTime), filepath.Join(p.dir, "pid"), append([]string{"runc", "--root", p.runcRoot}, create...)...)
	if err != nil || theirs.Code != 0 {
		t.Fatalf("runc create: %v, %d: %s", err, theirs.Code, theirs.Stderr)
	}
	in := func(lines ...string) {
		for _, line := range lines {
			p.same(strings.Fields(strings.ReplaceAll(line, "ID", id))...)
		}
	}
	status := func(want string) {
		t.Helper()
		for name, run := range map[string]func(...string) host.Result{"bulkhead": p.cli, "runc": p.runc} {
			must(t, commandTime, func() error {
				var state map[string]any
				if err := json.Unmarshal([]byte(run("state", id).Stdout), &state); err != nil {
					return err
				}
				return is(name+" "+state["status"].(string), name+" "+want)
			})
		}
	}
	keys := func(text string) map[string]any {
		var list []map[string]any
		if strings.HasPrefix(text, "{") {
			text = "[" + text + "]"
		}
		if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 1 {
			t.Fatalf("%q: %v", text, err)
		}
		return list[0]
	}

	status("created")
	in("create --bundle "+bundle+" ID", "list", "list -q", "ps ID", "ps ID -o pid,comm", "ps -f json ID", "ps -f xml ID", "exec ID true", "pause ID")
	for _, line := range [][]string{{"state", id}, {"list", "-f", "json"}} {
		ours, theirs := p.same(line...)
		for key := range keys(theirs.Stdout) {
			if _, ok := keys(ours.Stdout)[key]; !ok {
				t.Errorf("%s lacks %q, which runc's has", line, key)
			}
		}
	}
	status("paused")
	in("start ID", "exec ID true", "delete ID", "resume ID")
	status("created")
	in("resume ID", "start ID", "start ID")
	status("running")
	in("delete ID", "kill ID 0", "kill ID USR1", "kill ID 10", "kill --all ID SIGUSR1", "exec ID false", "exec ID nosuch", "exec ID /tmp", "exec --cwd /nosuch ID true", "exec --cwd tmp ID true",
		"exec --user nobody ID true", "exec --cap CAP_KILL --no-new-privs ID true", "exec --apparmor x ID true", "exec --cgroup nosuch ID true",
		"exec -d -t ID true", "exec -d --console-socket s ID true", "exec ID", "exec -d ID sleep 1")
	for _, line := range [][]string{
		{"sh", "-c", "exit 42"}, {"sh", "-c", "kill -9 $$"}, {"-e", "A=b", "-e", "C=", "-u", "5:6", "-g", "7", "-g", "8", id, "sh", "-c", "echo $A-$C-; id -u; id -G; pwd"},
	} {
		if line[0] == "sh" {
			line = append([]string{id}, line...)
		}
		ours, theirs := p.same(append([]string{"exec"}, line...)...)
		expect(t, "the output of "+strings.Join(line, " "), ours.Stdout, theirs.Stdout)
	}
	in("pause ID", "pause ID")
	status("paused")
	in("delete ID", "kill ID 9")
	status("stopped")
	in("kill ID 9", "kill --all ID 9", "ps ID", "exec ID true", "pause ID", "resume ID", "start ID", "list", "delete ID", "state ID", "delete ID", "delete --force ID")
}
