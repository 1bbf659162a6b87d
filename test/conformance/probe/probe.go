// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package probe is the inside of a container as the conformance suite sees it: a
// small static program that runs as the container's process, looks at everything
// a bundle can ask for, and prints one JSON report. One start so answers for
// dozens of promises.
//
// It imports nothing of ours. The invariant: it reports what it found, errors
// too, and judges nothing.
package probe

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// AskPath is the file in the root file system with the Ask; without one nothing
// beside the fixed part is looked at.
const AskPath = "/probe.json"

// Ask is what to look at beside the process itself.
type Ask struct {
	Stat  []string `json:"stat,omitempty"`  // paths
	Read  []string `json:"read,omitempty"`  // files
	List  []string `json:"list,omitempty"`  // directories
	Write []string `json:"write,omitempty"` // files to open for writing, or to create
	Open  []string `json:"open,omitempty"`  // files to open for reading and writing, such as devices
	Exec  []string `json:"exec,omitempty"`  // programs to execute without arguments
	Calls []string `json:"calls,omitempty"` // names of Calls
	Stdin bool     `json:"stdin,omitempty"` // read standard input to its end
}

// Report is what was found.
type Report struct {
	Args       []string          `json:"args"`
	Env        []string          `json:"env"` // as the kernel has it, duplicates too
	Cwd        string            `json:"cwd"`
	PID        int               `json:"pid"`
	Status     map[string]string `json:"status"` // /proc/self/status
	Limits     map[string]Limit  `json:"limits"` // by the names of runtime-spec; Go raises the soft RLIMIT_NOFILE
	Mounts     []Mount           `json:"mounts"` // /proc/self/mountinfo
	Namespaces map[string]string `json:"namespaces"`
	OOMScore   string            `json:"oom_score_adj"`
	Policy     int               `json:"policy"` // sched_getscheduler(2)
	Nice       int               `json:"nice"`
	RTPriority int               `json:"rt_priority"`
	IOPriority int               `json:"io_priority"` // ioprio_get(2): class<<13 | level
	Domain     string            `json:"personality"`
	Hostname   string            `json:"hostname"`
	Domainname string            `json:"domainname"`
	Terminal   bool              `json:"terminal"` // standard output is one
	Rows       int               `json:"rows"`
	Columns    int               `json:"columns"`
	FDs        []string          `json:"fds"` // open at the start

	Stat  map[string]Stat   `json:"stat"`
	Read  map[string]Text   `json:"read"`
	List  map[string]Text   `json:"list"`  // one name a line
	Write map[string]string `json:"write"` // empty if it went well
	Open  map[string]string `json:"open"`
	Exec  map[string]string `json:"exec"`
	Calls map[string]string `json:"calls"`
	Stdin string            `json:"stdin"`
}

// Limit is a resource limit of the process.
type Limit struct{ Soft, Hard uint64 }

// Mount is a line of mountinfo (proc(5)).
type Mount struct {
	Root, Point, Type, Source string
	Options                   []string // of the mount
	Super                     []string // of the file system
	Tags                      []string // shared:N, master:N, unbindable
}

// Stat is what lstat(2) told of a path.
type Stat struct {
	Err          string `json:"err,omitempty"`
	Mode         uint32 `json:"mode"` // with the type
	UID, GID     uint32
	Major, Minor uint32
	Target       string `json:"target,omitempty"` // of a symbolic link
}

// Text is what a file held.
type Text struct {
	Err  string `json:"err,omitempty"`
	Text string `json:"text,omitempty"`
}

// limits are the names that runtime-spec has for resources.
var limits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// Main prints the report.
func Main() error {
	r := Report{FDs: descriptors()} // before this program opens any
	var ask Ask
	text, err := os.ReadFile(AskPath)
	if err == nil {
		err = json.Unmarshal(text, &ask)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := r.process(); err != nil {
		return err
	}
	r.answer(ask)
	return json.NewEncoder(os.Stdout).Encode(r)
}

func descriptors() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return []string{err.Error()}
	}
	var open []string
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", entry.Name()))
		if err != nil || strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "/proc/") {
			continue // the directory itself, and what Go's runtime polls with
		}
		open = append(open, entry.Name()+" "+target)
	}
	return open
}

func (r *Report) process() error {
	r.Args, r.PID = os.Args, os.Getpid()
	var err error
	if r.Cwd, err = os.Getwd(); err != nil {
		r.Cwd = err.Error()
	}
	environ, err := os.ReadFile("/proc/self/environ")
	if err != nil {
		return err
	}
	r.Env = strings.Split(strings.TrimSuffix(string(environ), "\x00"), "\x00")
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	r.Status = map[string]string{}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		r.Status[key] = strings.Join(strings.Fields(value), " ")
	}
	r.Limits = map[string]Limit{}
	for name, resource := range limits {
		var limit unix.Rlimit
		if err := unix.Getrlimit(resource, &limit); err == nil {
			r.Limits[name] = Limit{limit.Cur, limit.Max}
		}
	}
	if err := r.mounts(); err != nil {
		return err
	}
	r.Namespaces = map[string]string{}
	for _, kind := range []string{"pid", "net", "mnt", "ipc", "uts", "user", "cgroup", "time"} {
		if link, err := os.Readlink("/proc/self/ns/" + kind); err == nil {
			r.Namespaces[kind] = link
		}
	}
	if text, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		r.OOMScore = strings.TrimSpace(string(text))
	}
	if text, err := os.ReadFile("/proc/self/personality"); err == nil {
		r.Domain = strings.TrimSpace(string(text))
	}
	if attr, err := unix.SchedGetAttr(0, 0); err == nil {
		r.Policy, r.Nice, r.RTPriority = int(attr.Policy), int(attr.Nice), int(attr.Priority)
	}
	r.IOPriority = ioPriority()
	var names unix.Utsname
	if err := unix.Uname(&names); err == nil {
		r.Hostname, r.Domainname = unix.ByteSliceToString(names.Nodename[:]), unix.ByteSliceToString(names.Domainname[:])
	}
	if size, err := unix.IoctlGetWinsize(1, unix.TIOCGWINSZ); err == nil {
		r.Terminal, r.Rows, r.Columns = true, int(size.Row), int(size.Col)
	}
	return nil
}

// mounts parses mountinfo: "36 35 98:0 /root /point rw,noatime master:1 - type source rw".
func (r *Report) mounts() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		left, right, _ := strings.Cut(line, " - ")
		l, rest := strings.Fields(left), strings.Fields(right)
		if len(l) < 6 || len(rest) < 3 {
			continue
		}
		r.Mounts = append(r.Mounts, Mount{
			Root: l[3], Point: l[4], Options: strings.Split(l[5], ","), Tags: l[6:],
			Type: rest[0], Source: rest[1], Super: strings.Split(rest[2], ","),
		})
	}
	return nil
}

func (r *Report) answer(ask Ask) {
	r.Stat, r.Read, r.List, r.Write, r.Open, r.Exec, r.Calls = map[string]Stat{}, map[string]Text{}, map[string]Text{},
		map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}
	for _, path := range ask.Stat {
		r.Stat[path] = lstat(path)
	}
	for _, path := range ask.Read {
		text, err := os.ReadFile(path)
		r.Read[path] = Text{word(err), string(text)}
	}
	for _, path := range ask.List {
		entries, err := os.ReadDir(path)
		var names []string
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		r.List[path] = Text{word(err), strings.Join(names, "\n")}
	}
	for _, path := range ask.Write {
		r.Write[path] = openWith(path, unix.O_WRONLY|unix.O_CREAT)
	}
	for _, path := range ask.Open {
		r.Open[path] = openWith(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK)
	}
	for _, path := range ask.Exec {
		r.Exec[path] = execute(path)
	}
	for _, name := range ask.Calls {
		r.Calls[name] = call(name)
	}
	if ask.Stdin {
		var b bytes.Buffer
		_, err := io.Copy(&b, os.Stdin)
		r.Stdin = b.String() + word(err)
	}
}

func lstat(path string) Stat {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Stat{Err: word(err)}
	}
	target, _ := os.Readlink(path) // empty for all that is no link
	return Stat{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Target: target,
		Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
	}
}

func openWith(path string, flags int) string {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return word(err)
	}
	return word(unix.Close(fd))
}

func execute(path string) string {
	process, err := os.StartProcess(path, []string{path}, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
	if err != nil {
		return word(err)
	}
	_, err = process.Wait()
	return word(err)
}

// word is an error's name as errno(3) has it, and empty for none.
func word(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	default:
		return err.Error()
	}
}
