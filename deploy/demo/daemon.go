// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

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

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
)

// daemon is a bulkheadd of the demo's own, with its own run directory.
type daemon struct {
	cmd    *exec.Cmd
	cli    string // the bulkhead binary
	config string
	runDir string
	root   string // --root of the demo's containers
	log    string
	conn   *bus.Conn
	ended  chan error
}

const daemonConfig = `[host]
id = "demo"
run_dir = %q
operator = false

[vm]
kernel = %q
image = %q
`

// startDaemon starts bulkheadd and returns when it says it is ready.
func startDaemon(ctx context.Context, build, dir string) (*daemon, error) {
	d := &daemon{
		cli:    filepath.Join(build, "bin", "bulkhead"),
		config: filepath.Join(dir, "bulkhead.toml"),
		runDir: filepath.Join(dir, "run"),
		root:   filepath.Join(dir, "containers"),
		log:    filepath.Join(dir, "bulkheadd.log"),
		ended:  make(chan error, 1),
	}
	text := fmt.Sprintf(daemonConfig, d.runDir, filepath.Join(build, "guest", "vmlinux"), filepath.Join(build, "guest", "image.ext4"))
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	// The daemon says "ready" as it does to systemd (sd_notify(3)).
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer notify.Close()
	logFile, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	d.cmd = exec.Command(filepath.Join(build, "bin", "bulkheadd"), "--config", d.config)
	d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	d.cmd.Stdout, d.cmd.Stderr = logFile, logFile
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C is ours to handle
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start bulkheadd (make build makes it): %w", err)
	}
	go func() { d.ended <- d.cmd.Wait() }()

	ready := make(chan error, 1)
	go func() {
		buf := make([]byte, 512)
		for {
			n, err := notify.Read(buf)
			if err != nil {
				return // closed below
			}
			if strings.Contains(string(buf[:n]), "READY=1") {
				ready <- nil
				return
			}
		}
	}()
	select {
	case <-ready:
	case err := <-d.ended:
		return nil, fmt.Errorf("bulkheadd ended at once: %w\n%s", err, d.lastLog())
	case <-ctx.Done():
		_ = d.cmd.Process.Kill()
		return nil, fmt.Errorf("bulkheadd was not ready in time\n%s", d.lastLog())
	}
	d.conn, err = bus.Dial(ctx, d.runDir, "demo")
	if err != nil {
		_ = d.stop()
		return nil, err
	}
	return d, nil
}

// busRoundTrip measures one request over the bus: the best of a few, since what is asked is what the bus itself costs.
func (d *daemon) busRoundTrip(ctx context.Context) (time.Duration, error) {
	best := time.Hour
	for range 9 {
		began := time.Now()
		if _, err := bus.Call[busv1.ServiceStatus](ctx, d.conn, d.conn.Subject("vm", "status"), &busv1.StatusRequest{}); err != nil {
			return 0, err
		}
		best = min(best, time.Since(began))
	}
	return best, nil
}

// stop ends the daemon and waits for it.
func (d *daemon) stop() error {
	if d.conn != nil {
		d.conn.Close()
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.ended:
		return nil
	case <-time.After(20 * time.Second):
		_ = d.cmd.Process.Kill()
		return fmt.Errorf("bulkheadd did not end by itself\n%s", d.lastLog())
	}
}

func (d *daemon) lastLog() string {
	raw, _ := os.ReadFile(d.log)
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
