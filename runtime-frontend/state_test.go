// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vmv1 "bulkhead/proto/vm/v1"
)

// firstThreadEnds in the environment makes this program one whose first thread ends and whose others
// live until standard input does.
const firstThreadEnds = "BULKHEAD_TEST_FIRST_THREAD_ENDS"

func init() { // on the first thread, as all of them
	if os.Getenv(firstThreadEnds) == "" {
		return
	}
	go func() {
		fmt.Println("there")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

func TestARelayEndsWithTheLastOfItsThreads(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), firstThreadEnds+"=1", "GOMAXPROCS=4")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reaped := false
	defer func() {
		if !reaped {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "there\n" {
		t.Fatalf("it says %q, %v", line, err)
	}
	pid := cmd.Process.Pid
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || time.Now().After(limit) {
			t.Fatalf("its first thread does not end: %s, %v", text, err)
		}
		if strings.Contains(string(text), ") Z ") {
			break
		}
	}
	relay := &vmv1.Relay{Pid: int32(pid)}
	if !alive(relay) {
		t.Error("a relay of which threads live is called ended")
	}
	in.Close()
	if err := waitExited(pid); err != nil {
		t.Fatal(err)
	}
	if alive(relay) {
		t.Error("a relay that nobody has reaped yet is called living")
	}
	_ = cmd.Wait()
	reaped = true
	if alive(relay) {
		t.Error("a relay that has been reaped is called living")
	}
}
