// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/childtest"
	"bulkhead/bus/procstat"
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
	child := childtest.Start(t, firstThreadEnds+"=1", "GOMAXPROCS=4")
	pid := child.Process.Pid
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := procstat.Read("/proc", pid)
		if err != nil || time.Now().After(limit) {
			t.Fatalf("its first thread does not end: %+v, %v", stat, err)
		}
		if stat.State == "Z" {
			break
		}
	}
	relay := &vmv1.Relay{Pid: int32(pid)}
	if !alive(relay) {
		t.Error("a relay of which threads live is called ended")
	}
	child.In.Close()
	if err := waitExited(pid); err != nil {
		t.Fatal(err)
	}
	if alive(relay) {
		t.Error("a relay that nobody has reaped yet is called living")
	}
	if err := child.End(); err != nil {
		t.Error(err)
	}
	if alive(relay) {
		t.Error("a relay that has been reaped is called living")
	}
}
