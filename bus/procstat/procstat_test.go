// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package procstat_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/procstat"
)

func TestWhatAProcessCallsItselfDoesNotMoveTheFields(t *testing.T) {
	const rest = " S 1 2 3 0 -1 4194560 5 6 7 8 150 50 9 10 20 0 3 0 4242 11 12\n"
	kernel := strings.Replace(rest, "4194560", "2129984", 1)
	for _, c := range []struct {
		name, text, wrong string
		kernel            bool
	}{
		{name: "kvm-nx-lpage-recovery-7", text: "7 (kvm-nx-lpage-recovery-7)" + kernel, kernel: true},
		{name: "cat", text: "7 (cat)" + rest},
		{name: "a b) Z 1 (c", text: "7 (a b) Z 1 (c)" + rest},
		{name: "", text: "7 ()" + rest},
		{text: "", wrong: "no name"},
		{text: "7 cat) S (", wrong: "no name"},
		{text: "7 (cat) S 1 2 3", wrong: "cut short"},
		{text: "7 (cat)" + strings.Replace(rest, "4242", "-4", 1), wrong: `"-4"`},
		{text: "7 (cat)" + strings.Replace(rest, "150", "much", 1), wrong: `"much"`},
	} {
		proc := t.TempDir()
		err := errors.Join(os.Mkdir(filepath.Join(proc, "7"), 0o755), os.WriteFile(filepath.Join(proc, "7/stat"), []byte(c.text), 0o600))
		if err != nil {
			t.Fatal(err)
		}
		got, err := procstat.Read(proc, 7)
		switch want := (procstat.Stat{Name: c.name, State: "S", Kernel: c.kernel, CPU: 2 * time.Second, Start: 4242}); {
		case c.wrong == "" && (err != nil || got != want):
			t.Errorf("%q is read as %+v, %v", c.text, got, err)
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong) || got != procstat.Stat{}):
			t.Errorf("%q is read as %+v, %v", c.text, got, err)
		}
	}
}

func TestAProcessIsKnownUntilItIsGone(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	lives, err := procstat.Read("/proc", pid)
	if err != nil || lives.Start == 0 || lives.State == "Z" {
		t.Errorf("a process that lives is %+v, %v", lives, err)
	}
	in.Close()
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if ended, err := procstat.Read("/proc", pid); err != nil || ended.State != "Z" || ended.Start != lives.Start {
		t.Errorf("one that has ended is %+v, %v; it was %+v", ended, err, lives)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if gone, err := procstat.Read("/proc", pid); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		t.Errorf("one that is gone is %+v, %v", gone, err)
	}
}
