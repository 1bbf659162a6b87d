// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package jail starts a hypervisor where it can reach nothing but what it was
// given: namespaces of its own, a root of a few read-only binds, few
// capabilities, its cgroups entered before its first instruction.
//
// It imports nothing of ours. The invariant to remember: the jailed program
// runs only after the starter has recorded its process. The helper, a re-exec
// of the starter's own binary, waits for its orders on a socket that is closed
// with the starter; so whoever dies in between leaves nothing running.
package jail

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// helperName is argv[0] of the helper, by which Main knows it.
const helperName = "bulkhead-jail"

// Bind shows a file or directory of the host, read-only, in the jail.
type Bind struct {
	Source string `json:"source"`
	Target string `json:"target"`
	// Optional binds are left out when the source does not exist.
	Optional bool `json:"optional,omitempty"`
}

// Config describes a jail and the program in it.
type Config struct {
	// Root is an existing directory over which the jail's root is built. It is
	// covered in the jail only.
	Root string `json:"root"`
	// Argv is the program, an absolute path in the jail, and its arguments.
	Argv []string `json:"argv"`
	// NoHugePages keeps the program's memory in small pages, of which it has only those that it
	// touched (prctl(2), PR_SET_THP_DISABLE).
	NoHugePages bool `json:"no_huge_pages,omitempty"`
	// Env is added to the program's environment, which is PATH and LANG.
	Env []string `json:"env,omitempty"`
	// Binds come on top of the system's libraries.
	Binds []Bind `json:"binds,omitempty"`
	// Devices are paths in /dev beside null, zero and urandom.
	Devices []string `json:"devices,omitempty"`
	// Capabilities the program keeps, by number; everything else is dropped from
	// the bounding set too.
	Capabilities []uintptr `json:"capabilities,omitempty"`
	// CgroupProcs are cgroup.procs files entered before the program runs.
	CgroupProcs []string `json:"cgroup_procs,omitempty"`
	// OOMScoreAdj is set when not nil; a host that refuses to lower it is obeyed.
	OOMScoreAdj *int `json:"oom_score_adj,omitempty"`
	// Hostname is what the jail's UTS namespace says.
	Hostname string `json:"hostname,omitempty"`
	// Mergeable lets the host merge all anonymous memory of the program with equal pages of other processes
	// (prctl(2), PR_SET_MEMORY_MERGE, Linux 6.4); a kernel that has no such thing is obeyed.
	Mergeable bool `json:"mergeable,omitempty"`
	// SharedPIDs leaves the program in the starter's PID namespace: it can make processes that are the starter's
	// children and live on without it. It sees the host's processes, so no guest of anybody's may run in it.
	SharedPIDs bool `json:"shared_pids,omitempty"`
	// Stage and Export are two places of one tmpfs, Export read-only
	// (vm-worker/share says what for). Empty: none.
	Stage  string `json:"stage,omitempty"`
	Export string `json:"export,omitempty"`
}

// StageOptions are those of the tmpfs of Stage: places only, directories and empty files, one per container and mount.
const StageOptions = "size=1m,nr_inodes=16k,mode=0711"

// setupTimeout bounds the helper's work, which is some 10 ms.
const setupTimeout = 20 * time.Second

// Start runs the program of c in its jail. files become its descriptors from 3
// on; its standard input and output are /dev/null and its standard error is
// stderr. launched is told the pid before the program, or anything of the
// jail, is set up; its error ends the helper. The process leads a session of
// its own, and is the caller's to wait for. On an error no process is left.
//
// The program is process 1 of its PID namespace, unless c says otherwise: what it could fork dies with it.
func Start(ctx context.Context, c Config, files []*os.File, stderr *os.File, launched func(pid int) error) (*os.Process, error) {
	if !called.Load() {
		return nil, errors.New("this program's main does not call jail.Main")
	}
	order, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("describing the jail: %w", err)
	}
	control, theirs, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer control.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{helperName, strconv.Itoa(3 + len(files))}
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=off"}
	cmd.Stderr = stderr
	cmd.ExtraFiles = append(append([]*os.File{}, files...), theirs)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
	}
	if !c.SharedPIDs {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("starting the jail's helper: %w", err)
	}
	if err := direct(ctx, control, order, cmd.Process.Pid, launched); err != nil {
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
		return nil, err
	}
	return cmd.Process, nil
}

// direct gives the helper its orders and waits until it has become the program.
func direct(ctx context.Context, control *os.File, order []byte, pid int, launched func(int) error) error {
	if launched != nil {
		if err := launched(pid); err != nil {
			return fmt.Errorf("recording process %d: %w", pid, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := control.Write(append(order, '\n')); err != nil {
		return fmt.Errorf("giving the jail's helper its orders: %w", orCause(ctx, err))
	}
	// The helper's end closes when it executes the program, or with its error.
	complaint, err := io.ReadAll(io.LimitReader(control, 4096))
	if err != nil {
		return fmt.Errorf("waiting for the jail's helper: %w", orCause(ctx, err))
	}
	switch string(complaint) {
	case ready:
		return nil
	case "":
		return errors.New("the jail's helper ended without a word")
	}
	return fmt.Errorf("jailing the hypervisor: %s", strings.TrimPrefix(string(complaint), ready))
}

// ready is what the helper says just before it executes the program: alone, it
// means that the program runs; a failed exec adds its error.
const ready = "ready\n"

func orCause(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	return err
}

func controlPair() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket for the jail's helper: %w", err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil { // so that deadlines work on it
		unix.Close(pair[0])
		unix.Close(pair[1])
		return nil, nil, fmt.Errorf("making a socket for the jail's helper: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), "jail"), os.NewFile(uintptr(pair[1]), "jail"), nil
}

// called tells that Main has run: without it a re-exec would start the whole
// program a second time.
var called atomic.Bool

// Main is to be called first in main, and in TestMain, of every program that
// calls Start. It returns at once unless this process is the helper; then it
// does not return.
func Main() {
	called.Store(true)
	if len(os.Args) != 2 || os.Args[0] != helperName {
		return
	}
	fd, err := strconv.Atoi(os.Args[1])
	if err != nil || fd < 3 {
		os.Exit(2)
	}
	// What the starter inherited itself, from whoever started it, is not the program's.
	if err := unix.CloseRange(uint(fd), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		os.Exit(2)
	}
	control := os.NewFile(uintptr(fd), "jail")
	order, err := bufio.NewReader(control).ReadBytes('\n')
	if err != nil {
		os.Exit(3) // the starter died before it recorded us
	}
	var c Config
	if err := json.Unmarshal(order, &c); err != nil {
		fmt.Fprintf(control, "understanding the orders: %v", err)
		os.Exit(3)
	}
	// enter returns only to say why the program could not be executed.
	_, _ = io.WriteString(control, enter(c, control).Error())
	os.Exit(3)
}
