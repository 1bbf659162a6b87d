// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/creack/pty"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/test/e2e/host"
)

// operator is a person with the nats command line.
type operator struct {
	t    *testing.T
	path string
	host *host.Host
}

func newOperator(t *testing.T, h *host.Host) operator {
	t.Helper()
	path := os.Getenv("BULKHEAD_NATS_CLI")
	if path == "" {
		t.Skip("BULKHEAD_NATS_CLI names no nats command line; \"make e2e\" builds one")
	}
	return operator{t, path, h}
}

func (o operator) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, o.path, append([]string{"--context", "bulkhead"}, args...)...)
	cmd.Env = append(cmd.Environ(), "XDG_CONFIG_HOME="+o.host.ConfigHome)
	if args[0] != "micro" { // which waits so long for whoever may be there
		cmd.Env = append(cmd.Env, "NATS_TIMEOUT="+commandTime.String())
	}
	return cmd
}

// try runs a command, whatever its code.
func (o operator) try(args ...string) host.Result {
	o.t.Helper()
	cmd := o.command(o.t.Context(), args...)
	r, err := host.Run(within(o.t, commandTime), nil, cmd.Env, cmd.Args...)
	if err != nil {
		o.t.Fatalf("nats %s: %v: %s", strings.Join(args, " "), err, r.Stderr)
	}
	return r
}

func (o operator) do(args ...string) string {
	o.t.Helper()
	r := o.try(args...)
	if r.Code != 0 {
		o.t.Fatalf("nats %s ended with %d: %s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// follow runs a command that does not end, until the test does.
func (o operator) follow(args ...string) *host.Output {
	o.t.Helper()
	ctx, cancel := context.WithCancel(o.t.Context())
	cmd := o.command(ctx, args...)
	out := host.NewOutput()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
	})
	return out
}

// atTerminal runs a command that wants a terminal.
func (o operator) atTerminal(args ...string) string {
	o.t.Helper()
	master, err := pty.Start(o.command(within(o.t, commandTime), args...))
	if err != nil {
		o.t.Fatal(err)
	}
	defer master.Close()
	text, _ := io.ReadAll(master) // EIO is how a terminal ends
	return string(text)
}

func (o operator) says(text string, words ...string) {
	o.t.Helper()
	if err := lacks(text, words...); err != nil {
		o.t.Error(err)
	}
}

// hears is says of a command that asks whoever may be there, and takes the silence of a moment for the end of the answers.
func (o operator) hears(words []string, args ...string) {
	o.t.Helper()
	must(o.t, commandTime, func() error { return lacks(o.try(args...).Stdout, words...) })
}

func lacks(text string, words ...string) error {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return fmt.Errorf("%q is not in:\n%s", word, text)
		}
	}
	return nil
}

func TestAnOperatorFindsTheServices(t *testing.T) {
	o := newOperator(t, sharedHost(t))
	o.hears(opts("vm", "net", "ksm", "host"), "micro", "ls")
	o.hears(opts("e2e.vm.list", "e2e.vm.create", "e2e.vm.status", "CreateRequest", "CreateReply"), "micro", "info", "vm")
	o.do("req", "e2e.vm.list", "{}", "--raw")
	o.hears(opts("list"), "micro", "stats", "vm")
	o.hears(opts("vm"), "micro", "ping")
	for _, service := range []string{"vm", "net", "ksm", "host"} {
		status := &busv1.ServiceStatus{}
		unmarshal(t, o.do("req", "e2e."+service+".status", "", "--raw"), status)
		expect(t, "the service", status.GetService(), service)
		expect(t, "the host", status.GetHost(), "e2e")
		expect(t, "readiness", status.GetReady(), true)
		expect(t, "the process", int(status.GetPid()), o.host.Daemon().PID())
	}
}

func TestABadRequestGetsAClearAnswer(t *testing.T) {
	o := newOperator(t, sharedHost(t))
	for _, c := range []struct{ name, subject, body, reason, word string }{
		{"no JSON", "e2e.vm.list", "{", "INVALID_ARGUMENT", ""},
		{"unknown field", "e2e.vm.list", `{"rot": "/x"}`, "INVALID_ARGUMENT", "rot"},
		{"unknown container", "e2e.vm.state", `{"ref": {"root": "/nowhere", "id": "nobody"}}`, "NOT_FOUND", "nobody"},
		{"missing reference", "e2e.vm.state", `{}`, "INVALID_ARGUMENT", ""},
		{"wrong type", "e2e.vm.kill", `{"signal": "nine"}`, "INVALID_ARGUMENT", "signal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := operator{t, o.path, o.host}
			r := o.try("req", c.subject, c.body)
			o.says(r.Stdout+r.Stderr, "Nats-Service-Error", c.reason)
			raw := o.try("req", c.subject, c.body, "--raw").Stdout
			problem := &busv1.Problem{}
			unmarshal(t, raw, problem)
			expect(t, "the reason", problem.GetReason(), c.reason)
			sentence(t, problem.GetMessage(), c.word)
		})
	}
}

func TestAnOperatorWatchesAContainersLife(t *testing.T) {
	h := sharedHost(t)
	op := newOperator(t, h)
	o := newOCI(t, h)
	id := newID("watched")
	key := bus.ContainerKey(o.root, id)
	events := op.follow("sub", "ev.>", "--raw")
	watch := op.follow("kv", "watch", bus.BucketContainers)
	// A subscription is there when something comes through it.
	warm := newID("warm")
	must(t, commandTime, func() error {
		op.do("pub", "ev.e2e.test."+warm+".tried", `{"kind": "test"}`)
		return is(boolText(strings.Contains(events.String(), "test")), "true")
	})

	// So is a watch that shows what there is, before it can miss what becomes of it.
	m := o.create(id, newSpec("sh", "-c", "cat; exit 42"))
	must(t, commandTime, func() error { return lacks(watch.String(), key) })
	o.do("start", id)
	list := &vmv1.ListReply{}
	unmarshal(t, op.do("req", "e2e.vm.list", `{"root": "`+o.root+`"}`, "--raw"), list)
	if len(list.GetContainers()) != 1 || list.GetContainers()[0].GetKey() != key || len(list.GetSandboxes()) != 1 {
		t.Errorf("the list is %v", list)
	}
	sandbox := list.GetSandboxes()[0]
	for what, value := range map[string]string{
		"accelerator": sandbox.GetAccelerator(), "reason for it": sandbox.GetAcceleratorReason(), "hypervisor": sandbox.GetHypervisor(), "kernel": sandbox.GetKernel(),
	} {
		if value == "" {
			t.Errorf("the VM's record has no %s: %v", what, sandbox)
		}
	}
	op.says(op.do("kv", "ls"), bus.BucketContainers, bus.BucketSandboxes, bus.BucketOperations)
	op.says(op.do("kv", "ls", bus.BucketContainers), key)
	record := &vmv1.Container{}
	must(t, commandTime, func() error { // the bucket is a copy
		unmarshal(t, op.do("kv", "get", bus.BucketContainers, key, "--raw"), record)
		return is(record.GetStatus().String(), vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING.String())
	})
	expect(t, "the record's id", record.GetRef().GetId(), id)
	unmarshal(t, op.do("kv", "get", bus.BucketSandboxes, bus.Token(sandbox.GetId()), "--raw"), &vmv1.Sandbox{})

	m.Stdin.Close()
	exits(t, m, 42)
	o.do("delete", id)

	steps := []string{"creating", "created", "started", "exited", "deleted"}
	must(t, commandTime, func() error { return is(strings.Join(stepsOf(events.String(), id), " "), strings.Join(steps, " ")) })
	must(t, commandTime, func() error {
		return lacks(watch.String(), key, "CONTAINER_STATUS_RUNNING", "CONTAINER_STATUS_STOPPED")
	})
	op.says(op.do("stream", "ls"), bus.EventStream)
	history := op.atTerminal("stream", "view", bus.EventStream, "25", "--raw", "--subject", bus.EventSubject(h.ID, "container", id, ""))
	expect(t, "the steps in the history", strings.Join(stepsOf(history, id), " "), strings.Join(steps, " "))
	must(t, commandTime, func() error {
		if got := op.try("kv", "get", bus.BucketContainers, key, "--raw"); got.Code == 0 {
			return fmt.Errorf("the record is left: %s", got.Stdout)
		}
		return nil
	})
}

// stepsOf gives the events of a container in order, from one JSON object a line
// among other lines.
func stepsOf(text, id string) []string {
	var steps []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		ev := &busv1.Event{}
		if err := protojson.Unmarshal([]byte(line), ev); err != nil {
			steps = append(steps, "unreadable: "+line)
		} else if ev.GetKind() == "container" && ev.GetId() == id {
			steps = append(steps, ev.GetEvent())
		}
	}
	return steps
}

func TestTheOperatorsListenerKnowsItsOwn(t *testing.T) {
	h := sharedHost(t)
	o := newOperator(t, h)
	raw := o.do("context", "info", "bulkhead", "--json")
	url := raw[strings.Index(raw, "nats://"):]
	url = url[:strings.IndexByte(url, '"')]
	r, err := host.Run(within(t, commandTime), nil, []string{"XDG_CONFIG_HOME=" + t.TempDir()}, o.path, "--server", url, "pub", "e2e.vm.list", "{}")
	if err != nil {
		t.Fatal(err)
	}
	if r.Code == 0 {
		t.Error("a stranger without the password may speak")
	}
	o.says(strings.ToLower(r.Stdout+r.Stderr), "authorization")
}

// unmarshal reads what a service has said. It may say more: every service's status has what all have, and its own.
func unmarshal(t *testing.T, text string, m proto.Message) {
	t.Helper()
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%.500q is not the JSON of a %s: %v", text, m.ProtoReflect().Descriptor().Name(), err)
	}
}

func boolText(b bool) string {
	if b {
		return "true"
	}
	return "false"
}
