// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package daemon starts a bulkheadd from a build directory, for the demo, for
// "make up" and for benchmarks, and waits as a service manager does until it
// serves.
//
// It imports nothing of ours: the daemon is reached as a user reaches it.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Options say which daemon to start.
type Options struct {
	Build  string // directory with bin/ and guest/
	Dir    string // an existing directory for configuration and log
	RunDir string
	Host   string // host id; empty means the host's name
	// Operator is the address of the operator's listener; empty means none.
	Operator string
	// VM is added to the [vm] section.
	VM string
}

// Daemon is a running bulkheadd.
type Daemon struct {
	Config string // its configuration file
	Log    string // its log file
	PID    int

	process *os.Process
	ended   chan struct{}
	state   error
}

// Start starts the daemon and returns when it says that it serves.
func Start(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{
		Config: filepath.Join(o.Dir, "bulkhead.toml"),
		Log:    filepath.Join(o.Dir, "bulkheadd.log"),
		ended:  make(chan struct{}),
	}
	if err := os.WriteFile(d.Config, []byte(o.config()), 0o600); err != nil {
		return nil, fmt.Errorf("write the daemon's configuration: %w", err)
	}
	// The daemon says "ready" as it does to systemd (sd_notify(3)).
	notifyPath := filepath.Join(o.Dir, "notify.sock")
	_ = os.Remove(notifyPath)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifyPath, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for the daemon's readiness: %w", err)
	}
	defer os.Remove(notifyPath)
	defer notify.Close()
	logFile, err := os.OpenFile(d.Log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the daemon's log: %w", err)
	}
	defer logFile.Close()
	cmd := exec.Command(filepath.Join(o.Build, "bin", "bulkheadd"), "--config", d.Config)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notifyPath)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the caller's ^C is the caller's
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start bulkheadd (make build makes it): %w", err)
	}
	d.process, d.PID = cmd.Process, cmd.Process.Pid
	go func() { d.state = cmd.Wait(); close(d.ended) }()

	ready := make(chan struct{})
	go AwaitReady(notify, ready)
	select {
	case <-ready:
		return d, nil
	case <-d.ended:
		return nil, fmt.Errorf("bulkheadd ended at once (%w):\n%s", d.state, d.LastLog())
	case <-ctx.Done():
		_ = d.process.Kill()
		<-d.ended
		return nil, fmt.Errorf("bulkheadd was not ready in time:\n%s", d.LastLog())
	}
}

// AwaitReady closes ready at READY=1 (sd_notify(3)), or returns when the socket is
// closed.
func AwaitReady(notify *net.UnixConn, ready chan<- struct{}) {
	buf := make([]byte, 512)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			return
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			close(ready)
			return
		}
	}
}

func (o Options) config() string {
	var b strings.Builder
	b.WriteString("[host]\n")
	if o.Host != "" {
		fmt.Fprintf(&b, "id = %q\n", o.Host)
	}
	fmt.Fprintf(&b, "run_dir = %q\noperator = %t\n", o.RunDir, o.Operator != "")
	if o.Operator != "" {
		fmt.Fprintf(&b, "operator_addr = %q\n", o.Operator)
	}
	fmt.Fprintf(&b, "\n[vm]\nkernel = %q\nimage = %q\n%s",
		filepath.Join(o.Build, "guest", "vmlinux"), filepath.Join(o.Build, "guest", "image.ext4"), o.VM)
	return b.String()
}

// stopTime is what a daemon gets to end by itself.
const stopTime = 40 * time.Second

// Stop ends the daemon and waits for it.
func (d *Daemon) Stop() error {
	if err := d.process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.ended:
		return nil
	case <-time.After(stopTime):
		_ = d.process.Kill()
		<-d.ended
		return fmt.Errorf("bulkheadd did not end by itself:\n%s", d.LastLog())
	}
}

// LastLog is the end of the daemon's log, for errors.
func (d *Daemon) LastLog() string {
	raw, _ := os.ReadFile(d.Log)
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
