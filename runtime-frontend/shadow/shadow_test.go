// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package shadow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/runtime-frontend/relay"
	"bulkhead/runtime-frontend/shadow"
)

var relayBinary string

// frontendEnv makes this test binary act as a frontend that starts a relay and
// waits to be killed.
const frontendEnv = "BULKHEAD_TEST_FRONTEND"

func TestMain(m *testing.M) {
	if spec := os.Getenv(frontendEnv); spec != "" {
		frontend(spec)
		return
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bulkhead-shadow-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	relayBinary = filepath.Join(dir, "bulkhead-relay")
	build := exec.Command("go", "build", "-o", relayBinary, "bulkhead/runtime-frontend/cmd/bulkhead-relay")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the relay: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func start(t *testing.T, spec shadow.Spec) *shadow.Relay {
	t.Helper()
	r, err := tryStart(t, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Kill() })
	return r
}

func tryStart(t *testing.T, spec shadow.Spec) (*shadow.Relay, error) {
	spec.Binary = relayBinary
	if spec.Args == nil {
		spec.Args = []string{"/usr/bin/nginx", "-g", "daemon off;"}
	}
	if spec.RelayDir == "" {
		spec.RelayDir = filepath.Join(t.TempDir(), "relay")
	}
	return shadow.Start(t.Context(), spec)
}

func newNamespaces(types ...string) (all []shadow.Namespace) {
	for _, name := range types {
		all = append(all, shadow.Namespace{Type: name})
	}
	return all
}

// image is a root file system with a marker.
func image(t *testing.T) string {
	root := t.TempDir()
	for _, dir := range []string{"proc", "etc", "data"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/marker"), []byte("container"), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

func proc(pid int, parts ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, parts...)...)
}

func TestInitRelayStandsInTheContainersNamespaces(t *testing.T) {
	volume := t.TempDir()
	os.WriteFile(filepath.Join(volume, "file"), []byte("volume"), 0o644)
	score := -500
	before := mounts(t)
	r := start(t, shadow.Spec{
		Namespaces: newNamespaces("pid", "mount", "ipc", "uts", "network", "cgroup"),
		Rootfs:     image(t), ReadonlyRootfs: true, Hostname: "web",
		Mounts:      []relay.Mount{{Source: volume, Destination: "/data", ReadOnly: true}, {Source: volume, Destination: "/not/there"}},
		OOMScoreAdj: &score,
	})
	for _, name := range []string{"pid", "mnt", "ipc", "uts", "net"} {
		own, _ := os.Readlink("/proc/self/ns/" + name)
		theirs, err := os.Readlink(proc(r.PID, "ns", name))
		if err != nil || theirs == own {
			t.Errorf("%s namespace %s, %v", name, theirs, err)
		}
	}
	for file, want := range map[string]string{"etc/marker": "container", "data/file": "volume"} {
		got, err := os.ReadFile(proc(r.PID, "root", file))
		if err != nil || string(got) != want {
			t.Errorf("%s seen through /proc/PID/root: %q, %v", file, got, err)
		}
	}
	if err := os.WriteFile(proc(r.PID, "root/etc/new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a read-only root: %v", err)
	}
	if list, err := os.ReadFile(proc(r.PID, "root/proc/1/cmdline")); err != nil || string(list) != "/usr/bin/nginx\x00-g\x00daemon off;\x00" {
		t.Errorf("the container's /proc shows %q, %v", list, err)
	}
	if comm, _ := os.ReadFile(proc(r.PID, "comm")); string(comm) != "nginx\n" {
		t.Errorf("comm %q", comm)
	}
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(r.PID), "-u", "hostname").Output()
	if err != nil || string(out) != "web\n" {
		t.Errorf("hostname %q, %v", out, err)
	}
	if text, _ := os.ReadFile(proc(r.PID, "mountinfo")); bytes.Contains(text, []byte(relayBinary)) || bytes.Count(text, []byte("\n")) > 4 {
		t.Errorf("the relay still holds mounts of the host:\n%s", text)
	}
	if after := mounts(t); after != before {
		t.Errorf("the host's mount table changed")
	}
}

// TestBeforeTheRootChangesHooksSeeBoth: the host's files by their paths, and the container's
// mounts below its root.
func TestBeforeTheRootChangesHooksSeeBoth(t *testing.T) {
	volume, root := t.TempDir(), image(t)
	os.WriteFile(filepath.Join(volume, "file"), []byte("volume"), 0o644)
	if err := os.Symlink("/data", filepath.Join(root, "link")); err != nil { // of the image, not of the host
		t.Fatal(err)
	}
	before := mounts(t)
	var said []byte
	spec := shadow.Spec{
		Namespaces: newNamespaces("pid", "mount", "ipc", "uts", "network"), Rootfs: root, Hostname: "web",
		Mounts: []relay.Mount{{Source: volume, Destination: "/link"}},
		BeforeRoot: func(pid int) error {
			return shadow.Inside(pid, func() (err error) {
				said, err = exec.Command("sh", "-c", `hostname; cat "$1/data/file"; test -x "$2" && echo host; readlink /proc/self/ns/mnt`, "sh", root, relayBinary).Output()
				return err
			})
		},
	}
	r := start(t, spec)
	theirs, _ := os.Readlink(proc(r.PID, "ns/mnt"))
	if want := "web\nvolumehost\n" + theirs + "\n"; string(said) != want {
		t.Errorf("inside it says %q, want %q", said, want)
	}
	if got, err := os.ReadFile(proc(r.PID, "root/data/file")); string(got) != "volume" {
		t.Errorf("the mount afterwards: %q, %v", got, err)
	}
	if after := mounts(t); after != before {
		t.Error("the host's mount table changed")
	}
	refused := errors.New("the hook failed")
	spec.BeforeRoot = func(int) error { return refused }
	if _, err := tryStart(t, spec); !errors.Is(err, refused) {
		t.Errorf("a failure there gives %v", err)
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestExecRelayJoinsTheInitRelayAndDiesWithIt(t *testing.T) {
	init := start(t, shadow.Spec{Namespaces: newNamespaces("pid", "mount", "ipc", "uts", "network"), Rootfs: image(t)})
	r := start(t, shadow.Spec{JoinPID: init.PID, JoinStartTime: init.StartTime})
	for _, name := range []string{"pid", "mnt", "ipc", "uts", "net"} {
		a, _ := os.Readlink(proc(init.PID, "ns", name))
		b, _ := os.Readlink(proc(r.PID, "ns", name))
		if a != b || a == "" {
			t.Errorf("%s namespaces %s and %s", name, a, b)
		}
	}
	if got, err := os.ReadFile(proc(r.PID, "root/etc/marker")); string(got) != "container" {
		t.Errorf("root of the exec relay: %q, %v", got, err)
	}
	syscall.Kill(init.PID, syscall.SIGKILL)
	if code, err := r.Wait(); code != 137 || err != nil {
		t.Errorf("the exec relay ended with %d, %v", code, err)
	}
	if _, err := tryStart(t, shadow.Spec{JoinPID: init.PID, JoinStartTime: init.StartTime}); err == nil {
		t.Error("joined a dead container")
	}
}

func TestNamespacesGivenByPathAreEntered(t *testing.T) {
	owner := start(t, shadow.Spec{Namespaces: newNamespaces("ipc", "uts", "network")})
	r := start(t, shadow.Spec{Namespaces: []shadow.Namespace{
		{Type: "network", Path: proc(owner.PID, "ns/net")},
		{Type: "ipc", Path: proc(owner.PID, "ns/ipc")},
		{Type: "uts", Path: proc(owner.PID, "ns/uts")},
		{Type: "pid"}, {Type: "mount"},
	}, Rootfs: image(t), Hostname: "must-not-change-the-pod"})
	for _, name := range []string{"net", "ipc", "uts"} {
		a, _ := os.Readlink(proc(owner.PID, "ns", name))
		b, _ := os.Readlink(proc(r.PID, "ns", name))
		if a != b {
			t.Errorf("%s namespaces %s and %s", name, a, b)
		}
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	if other, _ := os.Readlink(proc(owner.PID, "ns/net")); own == other {
		t.Error("the caller was moved, too")
	}
	if _, err := tryStart(t, shadow.Spec{Namespaces: []shadow.Namespace{{Type: "ipc", Path: proc(owner.PID, "ns/net")}}}); err == nil {
		t.Error("a network namespace was taken for an IPC namespace")
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	_, err := tryStart(t, shadow.Spec{RelayDir: dir, Namespaces: newNamespaces("mount"), Rootfs: "/does/not/exist"})
	if err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("error %v", err)
	}
	assertEmpty(t, dir)
}

func assertEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// frontend starts a relay, says so, and waits.
func frontend(spec string) {
	binary, dir, _ := strings.Cut(spec, "|")
	r, err := shadow.Start(context.Background(), shadow.Spec{
		Binary: binary, Args: []string{"x"}, RelayDir: dir,
		Namespaces: newNamespaces("pid", "mount", "network"), Rootfs: os.Getenv("ROOTFS"),
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if os.Getenv("COMMIT") != "" {
		r.Commit()
	}
	fmt.Println(r.PID)
	select {}
}

func TestDeathOfTheFrontendEndsTheRelayUnlessCommitted(t *testing.T) {
	for _, commit := range []bool{false, true} {
		t.Run(fmt.Sprintf("committed=%v", commit), func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), frontendEnv+"="+relayBinary+"|"+dir, "ROOTFS="+image(t))
			if commit {
				cmd.Env = append(cmd.Env, "COMMIT=1")
			}
			out, _ := cmd.StdoutPipe()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			if _, err := fmt.Fscan(out, &pid); err != nil {
				t.Fatal(err)
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			cmd.Process.Kill()
			cmd.Wait()
			ended := pidfdEnds(fd, map[bool]int{false: 3000, true: 300}[commit])
			if ended == commit {
				t.Errorf("the relay ended: %v", ended)
			}
			if commit {
				unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				pidfdEnds(fd, 3000)
				return
			}
			assertEmpty(t, dir)
		})
	}
}

func pidfdEnds(fd, timeoutMs int) bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeoutMs)
	return n == 1
}

func TestRelayHoldsNoOtherDescriptorAndOwnsItsSession(t *testing.T) {
	secret, _ := os.Open("/etc/passwd")
	defer secret.Close()
	unix.FcntlInt(secret.Fd(), unix.F_SETFD, 0) // inheritable, as an engine's are
	r := start(t, shadow.Spec{})
	fds, err := os.ReadDir(proc(r.PID, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(proc(r.PID, "fd", fd.Name())); strings.Contains(to, "passwd") {
			t.Errorf("descriptor %s is %s", fd.Name(), to)
		}
	}
	if sid, _ := unix.Getsid(r.PID); sid != r.PID {
		t.Errorf("session %d", sid)
	}
	info, err := os.Stat(r.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", info.Mode(), err)
	}
}

func TestInitRelayReapsOrphans(t *testing.T) {
	r := start(t, shadow.Spec{Namespaces: newNamespaces("pid")})
	// In the relay's PID namespace: a process whose parent ends before it.
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(r.PID), "-p", "sh", "-c", "sleep 0.1 & echo $!").Output()
	if err != nil {
		t.Skipf("nsenter: %v", err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		children, _ := os.ReadFile(proc(r.PID, "task", strconv.Itoa(r.PID), "children"))
		if len(bytes.TrimSpace(children)) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("orphan %s is still there: %s", out, children)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
