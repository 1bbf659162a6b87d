// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Monitored is a container process as conmon and containerd's shim have it: a
// create or an exec ran below a subreaper, which then waits for the process
// whose pid it found in the pid-file.
type Monitored struct {
	Code    int    // of the command
	PidFile string // what the pid-file held, as written; empty without one
	PID     int
	Stdin   *os.File // close it for the end of input
	Stdout  *Output
	Stderr  *Output
	Closed  <-chan struct{} // closed at the end of both outputs

	ended chan struct{} // closed when the monitor has ended
	exit  int           // of the process, once ended is closed
	err   error         // of the monitor, once ended is closed
}

// monitorReport is one line on reportFD: of the command first, of the process at
// its end.
type monitorReport struct {
	Code    *int   `json:"code,omitempty"`
	PidFile string `json:"pid_file,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Exit    *int   `json:"exit,omitempty"`
}

// Monitor runs a detaching command that writes pidFile, returns when the
// command has ended, and watches the process it left.
func Monitor(ctx context.Context, pidFile string, argv ...string) (*Monitored, error) {
	m := &Monitored{Stdout: NewOutput(), Stderr: NewOutput(), ended: make(chan struct{})}
	cmd := helper("monitor", append([]string{pidFile}, argv...)...)
	reports, reportEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reportEnd.Close()
	cmd.ExtraFiles = []*os.File{reportEnd}
	childIn, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	m.Stdin, cmd.Stdin = stdin, childIn
	outputs := make(chan struct{}, 2)
	var childOuts []*os.File
	for _, into := range []*Output{m.Stdout, m.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		childOuts = append(childOuts, w)
		go func() {
			_, _ = io.Copy(into, r) // ends with the last writer
			r.Close()
			outputs <- struct{}{}
		}()
	}
	cmd.Stdout, cmd.Stderr = childOuts[0], childOuts[1]
	closed := make(chan struct{})
	m.Closed = closed
	go func() {
		<-outputs
		<-outputs
		close(closed)
	}()
	err = cmd.Start()
	for _, f := range childOuts {
		f.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("start a monitor: %w", err)
	}
	reportEnd.Close()
	first := make(chan monitorReport, 1)
	go func() {
		defer close(m.ended)
		defer reports.Close()
		m.err = m.follow(json.NewDecoder(reports), cmd, first)
	}()
	select {
	case r, ok := <-first:
		if !ok {
			<-m.ended
			return nil, fmt.Errorf("monitor of %q: %w", argv, m.err)
		}
		m.Code, m.PidFile, m.PID = *r.Code, r.PidFile, r.PID
		return m, nil
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-m.ended
		return nil, fmt.Errorf("%q did not end: %w; stderr: %s", argv, ctx.Err(), m.Stderr)
	}
}

func (m *Monitored) follow(reports *json.Decoder, cmd *exec.Cmd, first chan<- monitorReport) error {
	var r monitorReport
	err := reports.Decode(&r)
	if err == nil && r.Code != nil {
		first <- r
		if r.PID != 0 {
			err = reports.Decode(&r)
		}
	}
	close(first)
	if r.Exit != nil {
		m.exit = *r.Exit
	}
	return errors.Join(err, cmd.Wait())
}

// Wait waits for the end of the process and gives its exit status, 128+n for
// signal n.
func (m *Monitored) Wait(ctx context.Context) (int, error) {
	select {
	case <-m.ended:
		return m.exit, m.err
	case <-ctx.Done():
		return 0, fmt.Errorf("process %d does not end: %w", m.PID, ctx.Err())
	}
}

// monitorMain is the monitor's side.
func monitorMain(pidFile string, argv []string) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	unix.CloseOnExec(reportFD)
	out := os.NewFile(reportFD, "report")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	// What the command leaves holds its output, not its monitor.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup2(int(null.Fd()), fd); err != nil {
			return err
		}
	}
	_ = cmd.Wait() // its code says it
	code := cmd.ProcessState.ExitCode()
	first := monitorReport{Code: &code}
	if text, err := os.ReadFile(pidFile); err == nil {
		first.PidFile = string(text)
		first.PID, _ = strconv.Atoi(first.PidFile)
	}
	if err := report(out, first); err != nil || first.PID == 0 {
		return err
	}
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(first.PID, &status, 0, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("wait for process %d, which the command left: %w", first.PID, err)
		}
	}
	exit := status.ExitStatus()
	if status.Signaled() {
		exit = 128 + int(status.Signal())
	}
	return report(out, monitorReport{Exit: &exit})
}
