// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/server"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// natsCLI finds the operator's tool, or skips the test.
func natsCLI(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("BULKHEAD_NATS_CLI"); path != "" {
		return path
	}
	path, err := exec.LookPath("nats")
	if err != nil {
		t.Skip("no nats CLI in PATH; install it with \"go install github.com/nats-io/natscli/nats@v0.5.1\", or name it in BULKHEAD_NATS_CLI")
	}
	return path
}

func TestOperatorSeesEverythingWithTheNatsCLI(t *testing.T) {
	cli := natsCLI(t)
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	b := bustest.Start(t, bustest.With(func(o *server.Options) { o.Operator, o.OperatorAddr = true, "127.0.0.1:0" }))
	c := b.Conn()
	svc, err := bus.NewService(t.Context(), c, bus.ServiceConfig{Name: "vm", Version: "1.2.3", Description: "virtual machines", Log: bustest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer svc.Stop(context.Background())
	if err := bus.Handle(svc, "state", func(_ context.Context, req *vmv1.StateRequest) (*vmv1.StateReply, error) {
		if req.GetRef().GetId() != "c1" {
			return nil, bus.Errorf(bus.NotFound, "no container %q", req.GetRef().GetId())
		}
		return &vmv1.StateReply{Container: &vmv1.Container{Ref: req.Ref, Status: vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING}}, nil
	}); err != nil {
		t.Fatal(err)
	}
	sandboxes, err := bus.OpenBucket[*vmv1.Sandbox](t.Context(), c, bus.BucketSandboxes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sandboxes.Put(t.Context(), "sb1", &vmv1.Sandbox{Id: "sb1", State: "running"}); err != nil {
		t.Fatal(err)
	}
	publish := func(event string) {
		t.Helper()
		if err := bus.Publish(t.Context(), c, &busv1.Event{Kind: "container", Id: "c1", Event: event}); err != nil {
			t.Fatal(err)
		}
	}
	publish("created")

	command := func(args ...string) *exec.Cmd {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		t.Cleanup(cancel)
		cmd := exec.CommandContext(ctx, cli, append([]string{"--context", "bulkhead"}, args...)...)
		// An isolated home: nothing of this machine's nats set-up may help or hinder.
		cmd.Env = []string{"XDG_CONFIG_HOME=" + config, "HOME=" + config, "PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}
		if !asksAround(args) {
			cmd.Env = append(cmd.Env, "NATS_TIMEOUT=30s")
		}
		return cmd
	}
	for _, tc := range []struct {
		name string
		args []string
		want []string
	}{
		{"request", []string{"req", "testhost.vm.state", `{"ref":{"root":"/r","id":"c1"}}`}, []string{`"CONTAINER_STATUS_RUNNING"`, "application/json"}},
		{"typing error", []string{"req", "testhost.vm.state", `{"reff":{}}`}, []string{"Nats-Service-Error-Code: 400", "INVALID_ARGUMENT", `unknown field \"reff\"`}},
		{"service error", []string{"req", "testhost.vm.state", `{"ref":{"id":"nope"}}`}, []string{"Nats-Service-Error: NOT_FOUND: no container \"nope\"", "Nats-Service-Error-Code: 404"}},
		{"status", []string{"req", "testhost.vm.status", ""}, []string{`"service":"vm"`, `"ready":true`}},
		{"micro ls", []string{"micro", "ls"}, []string{"vm", "1.2.3", "virtual machines"}},
		{"micro info", []string{"micro", "info", "vm"}, []string{"testhost.vm.state", "bulkhead.vm.v1.StateRequest", "application/json"}},
		{"micro stats", []string{"micro", "stats", "vm", "--json"}, []string{`"num_errors": 2`, `"num_requests": 3`, "NOT_FOUND: no container"}},
		{"micro ping", []string{"micro", "ping"}, []string{"vm"}},
		{"kv ls", []string{"kv", "ls"}, []string{"containers", "sandboxes", "operations"}},
		{"kv get", []string{"kv", "get", "sandboxes", "sb1"}, []string{`"running"`}},
		{"stream ls", []string{"stream", "ls"}, []string{"EV"}},
		{"stream get", []string{"stream", "get", "EV", "1"}, []string{"ev.testhost.container.c1.created", `"event":"created"`}}, // "view" wants a terminal
		{"system account", []string{"--user", "system", "--password", password(t, b), "server", "list"}, []string{"testhost"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			shows := func() error {
				out, err := command(tc.args...).CombinedOutput()
				if err != nil {
					return fmt.Errorf("nats %v: %w\n%s", tc.args, err, out)
				}
				// protojson varies its spaces on purpose.
				text := strings.NewReplacer(`": "`, `":"`, `": true`, `":true`).Replace(string(out))
				for _, want := range tc.want {
					if !strings.Contains(text, want) && !strings.Contains(string(out), want) {
						return fmt.Errorf("nats %v does not show %q:\n%s", tc.args, want, out)
					}
				}
				return nil
			}
			err := shows()
			for end := time.Now().Add(time.Minute); err != nil && asksAround(tc.args) && time.Now().Before(end); {
				err = shows()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	for _, tc := range []struct {
		name string
		args []string
		act  func()
		want string
	}{
		{"sub", []string{"sub", "ev.>", "--count", "1"}, func() { publish("started") }, "ev.testhost.container.c1.started"},
		{"kv watch", []string{"kv", "watch", "sandboxes"}, func() {
			if _, err := sandboxes.Put(t.Context(), "sb1", &vmv1.Sandbox{Id: "sb1", State: "stopped"}); err != nil {
				t.Error(err)
			}
		}, "stopped"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := command(tc.args...)
			seen := &watchWriter{want: tc.want, found: make(chan struct{})}
			cmd.Stdout, cmd.Stderr = seen, seen
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// The tool does not say when it listens, so the act is repeated until it shows.
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			limit := time.After(time.Minute)
			for shown := false; !shown; {
				select {
				case <-seen.found:
					shown = true
				case <-tick.C:
					tc.act()
				case <-limit:
					t.Errorf("nats %v does not show %q", tc.args, tc.want)
					shown = true
				}
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed, or ended by itself
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		out, err := command("--password", "wrong", "req", "testhost.vm.status", "").CombinedOutput()
		if err == nil || !strings.Contains(strings.ToLower(string(out)), "authorization violation") {
			t.Errorf("got %v:\n%s", err, out)
		}
	})
}

// watchWriter closes found when the text was written. os/exec writes to it from
// one goroutine.
type watchWriter struct {
	want  string
	found chan struct{}
	text  strings.Builder
	done  bool
}

// Write implements io.Writer.
func (w *watchWriter) Write(p []byte) (int, error) {
	w.text.Write(p)
	if !w.done && strings.Contains(w.text.String(), w.want) {
		w.done = true
		close(w.found)
	}
	return len(p), nil
}

// password reads the operator's credential where the daemon leaves it.
func password(t *testing.T, b *bustest.Bus) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(b.RunDir, "operator.json"))
	if err != nil {
		t.Fatal(err)
	}
	var credential struct{ Password string }
	if err := json.Unmarshal(body, &credential); err != nil {
		t.Fatal(err)
	}
	return credential.Password
}

// asksAround tells a command that asks whoever may be there: it waits as long as it may, and takes the silence of a moment for the end.
func asksAround(args []string) bool {
	return args[0] == "micro" || strings.HasPrefix(args[0], "--user")
}
