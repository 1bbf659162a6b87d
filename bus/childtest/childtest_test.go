// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package childtest_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"bulkhead/bus/childtest"
)

// echoEnv makes this program one that says what it is told, and ends with the last number that it was told.
const echoEnv = "BULKHEAD_TEST_ECHO"

func TestMain(m *testing.M) {
	greeting := os.Getenv(echoEnv)
	if greeting == "" {
		os.Exit(m.Run())
	}
	fmt.Println(greeting)
	status := 0
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		_, _ = fmt.Sscan(lines.Text(), &status)
	}
	os.Exit(status)
}

func TestAChildSaysWhatItIsAndEndsWithItsInput(t *testing.T) {
	for _, status := range []int{0, 7} {
		c := childtest.Start(t, echoEnv+"=hello there")
		if c.Said != "hello there" {
			t.Errorf("it says %q", c.Said)
		}
		if _, err := fmt.Fprintln(c.In, status); err != nil {
			t.Fatal(err)
		}
		err := c.End()
		var exit *exec.ExitError
		if status == 0 && err != nil || status != 0 && (!errors.As(err, &exit) || exit.ExitCode() != status) {
			t.Errorf("told to end with %d it ends with %v", status, err)
		}
		if again := c.End(); again != err { //nolint:errorlint // the very same
			t.Errorf("asked again it has ended with %v", again)
		}
	}
}

func TestAChildEndsWithItsTest(t *testing.T) {
	var c *childtest.Child
	t.Run("the test", func(t *testing.T) { c = childtest.Start(t, echoEnv+"=hello") })
	if err := c.Process.Signal(syscall.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("the child of a test that has ended is there still: %v", err)
	}
	if err := c.End(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it has ended with %v", err)
	}
}
