// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package shadow starts relays: it puts the host process that stands for a
// container process into the namespaces the bundle names, with the standard
// streams or a pty, as a child of the caller that survives it.
//
// The frontend uses it; it imports bus/procstat, and runtime-frontend/relay for what both
// sides of the start must agree on. The invariant: until Commit, the death of the
// caller, even by SIGKILL, ends the relay and removes its socket.
package shadow

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/procstat"
	"bulkhead/runtime-frontend/relay"
)

// Namespace is one entry of linux.namespaces (OCI runtime-spec,
// config-linux.md#namespaces). An empty Path means a new one.
type Namespace struct {
	Type string // network, ipc, uts, mount, pid, cgroup
	Path string
}

// Terminal asks for a pty. Its slave becomes the relay's standard streams and
// controlling terminal.
type Terminal struct {
	ConsoleSocket string // where SendConsole sends the master; empty in the foreground
	Foreground    bool   // the caller moves the bytes itself, with Proxy
	Width, Height uint16 // process.consoleSize; zero leaves the size unset
}

// Spec says what relay to start.
type Spec struct {
	Binary   string   // path of bulkhead-relay
	Args     []string // process.args: what ps shows
	RelayDir string   // directory of the relays' sockets; made 0700 if missing
	Token    string   // the socket is <RelayDir>/<Token>.sock; empty: random

	Stdin, Stdout, Stderr *os.File // nil is /dev/null; ignored with Terminal
	Terminal              *Terminal

	Namespaces     []Namespace   // of an init relay
	Rootfs         string        // absolute; root of a new mount namespace
	Mounts         []relay.Mount // shown below Rootfs where the image has a place for them
	ReadonlyRootfs bool
	Hostname       string // set in a new UTS namespace only

	// BeforeRoot, if set, is called when the relay stands in its namespaces and its
	// mounts are made, but the host's root is still its root. Its error is Start's.
	BeforeRoot func(pid int) error

	JoinPID       int    // exec: enter the namespaces of this init relay; excludes Namespaces
	JoinStartTime uint64 // its start time, to tell a reused pid apart; 0: do not check

	OOMScoreAdj *int
}

// Relay is a started relay.
type Relay struct {
	PID       int
	StartTime uint64 // field 22 of /proc/<pid>/stat
	Socket    string // absolute path of its socket

	process *os.Process
	control *os.File
	console *console // nil without a terminal
}

// startTimeout bounds the relay's own set-up.
const startTimeout = 10 * time.Second

// Start starts a relay and returns when it listens and stands in its
// namespaces. On an error nothing is left behind.
func Start(ctx context.Context, spec Spec) (_ *Relay, retErr error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	setup := relay.Setup{
		Socket:      spec.Token + ".sock",
		Terminal:    spec.Terminal != nil,
		ReadOnly:    spec.ReadonlyRootfs,
		Mounts:      spec.Mounts,
		Pause:       spec.BeforeRoot != nil,
		OOMScoreAdj: spec.OOMScoreAdj,
	}
	ns, err := openNamespaces(spec, &setup)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	encoded, err := setup.Encode()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(spec.RelayDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the relay directory: %w", err)
	}
	dir, err := os.OpenFile(spec.RelayDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the relay directory: %w", err)
	}
	defer dir.Close()

	r := &Relay{Socket: filepath.Join(spec.RelayDir, setup.Socket)}
	files := streams{spec.Stdin, spec.Stdout, spec.Stderr}
	if spec.Terminal != nil {
		if r.console, err = newConsole(*spec.Terminal); err != nil {
			return nil, err
		}
		defer r.console.closeSlave()
		files = streams{r.console.slave, r.console.slave, r.console.slave}
	}
	control, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("making the relay's control socket: %w", err)
	}
	r.control = control
	defer func() {
		if retErr != nil {
			r.abandon()
		}
	}()
	r.process, err = ns.fork(spec, files, theirs, dir)
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("starting the relay %s: %w", spec.Binary, err)
	}
	r.PID = r.process.Pid
	if err := r.converse(ctx, encoded, spec.BeforeRoot); err != nil {
		return nil, fmt.Errorf("setting up the relay: %w", err)
	}
	stat, err := procstat.Read("/proc", r.PID)
	if err != nil {
		return nil, fmt.Errorf("reading the relay's start time: %w", err)
	}
	r.StartTime = stat.Start
	return r, nil
}

func (s *Spec) check() error {
	if len(s.Args) == 0 {
		return errors.New("starting a relay: no arguments to show")
	}
	if s.JoinPID != 0 && len(s.Namespaces) != 0 {
		return errors.New("starting a relay: it either joins a relay or has namespaces of its own")
	}
	if s.Rootfs != "" && !filepath.IsAbs(s.Rootfs) {
		return fmt.Errorf("starting a relay: the root file system %q is not an absolute path", s.Rootfs)
	}
	if s.Token == "" {
		var random [8]byte
		rand.Read(random[:])
		s.Token = hex.EncodeToString(random[:])
	}
	if strings.ContainsAny(s.Token, "/\x00") {
		return fmt.Errorf("starting a relay: the token %q is no file name", s.Token)
	}
	return nil
}

// converse hands the set-up over and waits for the relay's word.
func (r *Relay) converse(ctx context.Context, setup []byte, beforeRoot func(int) error) error {
	word, err := r.ask(ctx, setup)
	if err == nil && word == relay.Mounted && beforeRoot != nil {
		if err := beforeRoot(r.PID); err != nil {
			return err
		}
		word, err = r.ask(ctx, []byte(relay.Proceed))
	}
	if err != nil {
		return err
	}
	if word != relay.Ready {
		return errors.New(word)
	}
	return nil
}

// ask sends the relay a word and gives its answer.
func (r *Relay) ask(ctx context.Context, message []byte) (string, error) {
	deadline := time.Now().Add(startTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	r.control.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { r.control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := r.control.Write(message); err != nil {
		return "", fmt.Errorf("sending its set-up: %w", err)
	}
	answer := make([]byte, 4096)
	n, err := r.control.Read(answer)
	if err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("waiting for it: %w", err)
	}
	return string(answer[:n]), nil
}

// Commit makes the relay outlive the caller. Until a worker connects, and
// once the caller is gone, it waits a minute and gives up.
func (r *Relay) Commit() error {
	r.control.SetDeadline(time.Now().Add(startTimeout))
	if _, err := r.control.Write([]byte(relay.Commit)); err != nil {
		// A process that ended in the meantime took its relay along; the status
		// waits for whoever adopts it.
		if errors.Is(err, unix.EPIPE) && r.ended() {
			return nil
		}
		return fmt.Errorf("committing the relay %d: %w", r.PID, err)
	}
	return nil
}

// ended tells whether a relay that closed its end of the control socket ended by
// itself. It stays to be waited for.
func (r *Relay) ended() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, r.PID, &info, unix.WEXITED|unix.WNOWAIT, nil)
	return err == nil && info.Code == cldExited
}

// cldExited is CLD_EXITED of waitid(2): by exit, not by a signal.
const cldExited = 1

// Close lets go of the relay: committed, it lives on, else it ends.
func (r *Relay) Close() {
	r.control.Close()
	if r.console != nil {
		r.console.close()
	}
}

// Kill ends the relay at once, waits for it, and removes its socket.
func (r *Relay) Kill() error {
	err := r.process.Kill()
	_, _ = r.process.Wait()
	r.Close()
	if rmErr := os.Remove(r.Socket); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func (r *Relay) abandon() {
	if r.process != nil {
		_ = r.Kill()
		return
	}
	r.Close()
}

// Wait waits for the relay's end and returns the container process's exit code.
func (r *Relay) Wait() (int, error) {
	state, err := r.process.Wait()
	if err != nil {
		return -1, fmt.Errorf("waiting for the relay %d: %w", r.PID, err)
	}
	if status, ok := state.Sys().(interface {
		Signaled() bool
	}); ok && status.Signaled() {
		return 128 + int(signalOf(state)), nil
	}
	return state.ExitCode(), nil
}
