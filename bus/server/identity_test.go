// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/childtest"
	"bulkhead/bus/server"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// childEnv makes the test binary play another process: "dial <run dir>" or
// "serve <run dir>".
const childEnv = "BULKHEAD_BUS_TEST_CHILD"

func TestMain(m *testing.M) {
	role, dir, ok := strings.Cut(os.Getenv(childEnv), " ")
	if !ok {
		os.Exit(m.Run())
	}
	switch role {
	case "dial":
		c, err := bus.Dial(context.Background(), dir, "child")
		if err == nil {
			_, err = bus.Call[busv1.ServiceStatus](context.Background(), c, c.Subject("vm", "status"), &busv1.StatusRequest{})
		}
		fmt.Println(err)
	case "serve":
		_, err := server.Start(context.Background(), server.Options{Host: bustest.Host, RunDir: dir})
		fmt.Println(err)
		_, _ = io.Copy(io.Discard, os.Stdin) // until killed, or the parent's end
	}
	os.Exit(0)
}

func TestPeersAreKnownByTheirCredentials(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	b := bustest.Start(t)
	s, err := bus.NewService(t.Context(), b.Conn(), bus.ServiceConfig{Name: "vm", Version: "1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop(t.Context())
	// The file modes would keep the other user out before the bus sees it, so open them:
	// the credentials alone must do.
	for _, path := range []string{filepath.Dir(b.RunDir), b.RunDir} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(b.RunDir, "child")
	body, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, body, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{bus.SocketName, server.GuestSocketName} {
		if err := os.Chmod(filepath.Join(b.RunDir, name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		uid  uint32
		want string
	}{
		{0, "<nil>"},
		{65534, "serves root only and this is uid 65534"},
	} {
		cmd := exec.CommandContext(t.Context(), binary)
		cmd.Env = append(os.Environ(), childEnv+"=dial "+b.RunDir)
		cmd.Stderr = os.Stderr
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: tc.uid, Gid: tc.uid}}
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), tc.want) {
			t.Errorf("uid %d: %q, %v; want %q", tc.uid, out, err, tc.want)
		}
	}
}

func TestStateSurvivesTheDeathOfTheDaemon(t *testing.T) {
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	run := filepath.Join(dir, "run")
	for round := range 3 {
		daemon := childtest.Start(t, childEnv+"=serve "+run)
		if daemon.Said != "<nil>" {
			t.Fatalf("the daemon said %q", daemon.Said)
		}
		c, err := bus.Dial(t.Context(), run, "test")
		if err != nil {
			t.Fatal(err)
		}
		sandboxes, err := bus.OpenBucket[*vmv1.Sandbox](t.Context(), c, bus.BucketSandboxes)
		if err != nil {
			t.Fatal(err)
		}
		for i := range round {
			if v, _, err := sandboxes.Get(t.Context(), fmt.Sprint("s", i)); err != nil || v.Pid != int32(i) {
				t.Errorf("round %d: record s%d is %v, %v", round, i, v, err)
			}
		}
		if _, err := sandboxes.Create(t.Context(), fmt.Sprint("s", round), &vmv1.Sandbox{Pid: int32(round)}); err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			_, err := server.Start(t.Context(), server.Options{Host: bustest.Host, RunDir: run})
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another daemon (pid %d) already serves %s", daemon.Process.Pid, run)) {
				t.Errorf("a second daemon: %v", err)
			}
		}
		daemon.Kill()
		c.Close()
	}
}

func TestCloseRemovesWhatStartMade(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	b := bustest.Start(t, bustest.With(func(o *server.Options) { o.Operator, o.OperatorAddr = true, "127.0.0.1:0" }))
	path := b.Server.ContextPath()
	for _, file := range []string{path, filepath.Join(b.RunDir, "operator.json")} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	if info, err := os.Stat(b.RunDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("run directory: %v, %v", info, err)
	}
	if err := b.Server.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(b.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.Name() != "jetstream" && e.Name() != "bus.lock" {
			t.Errorf("left behind: %s", e.Name())
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Errorf("left behind: %s", path)
	}
}

func TestForeignContextIsNotTouched(t *testing.T) {
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	path := filepath.Join(config, "nats", "context", "bulkhead.json")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	const mine = `{"description":"my own","url":"nats://elsewhere"}`
	if err := os.WriteFile(path, []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	b := bustest.Start(t, bustest.With(func(o *server.Options) { o.Operator, o.OperatorAddr = true, "127.0.0.1:0" }))
	if got := b.Server.ContextPath(); got != "" {
		t.Errorf("says it wrote %s", got)
	}
	if err := b.Server.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); string(got) != mine {
		t.Errorf("the file now holds %q, %v", got, err)
	}
}

func TestBadOptionsAreRefusedInASentence(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		opts server.Options
		want string
	}{
		"host id":        {server.Options{Host: "a.b", RunDir: dir}, "host id"},
		"public address": {server.Options{Host: "h", RunDir: filepath.Join(dir, "x"), Operator: true, OperatorAddr: "0.0.0.0:0"}, "loopback"},
		"open directory": {server.Options{Host: "h", RunDir: open}, "writable by nobody else"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			s, err := server.Start(ctx, tc.opts)
			if err == nil {
				_ = s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
