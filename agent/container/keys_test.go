// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestOnlyHarmlessContainerKeysAreTaken(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"", ".", "..", "a/b", "a b", "ä", strings.Repeat("x", 256), "a\x00"} {
		if err := validKey(key); !errors.Is(err, ErrInvalid) {
			t.Errorf("key %q: got %v, want a refusal", key, err)
		}
	}
	if err := validKey("0123abcd-Web_1.x+y"); err != nil {
		t.Error(err)
	}
}

func TestExitCodesFollowTheShell(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		script string
		code   int
	}{{"exit 0", 0}, {"exit 42", 42}, {"exit 255", 255}, {"kill -9 $$", 137}, {"kill -15 $$", 143}} {
		cmd := exec.Command("sh", "-c", c.script)
		_ = cmd.Run()
		if got := exitCode(cmd.ProcessState); got != c.code {
			t.Errorf("%s: got %d, want %d", c.script, got, c.code)
		}
	}
	if got := exitCode((*os.ProcessState)(nil)); got != 255 {
		t.Errorf("unknown state: got %d", got)
	}
}

func TestStartErrorIsSaidOnce(t *testing.T) {
	t.Parallel()
	once := `exec: "x": permission denied`
	if got := tidyStartError(errors.New("init: " + once + "; runc init error(s): " + once)).Error(); got != "init: "+once {
		t.Errorf("got %q", got)
	}
	other := errors.New("init: a; runc init error(s): b")
	if got := tidyStartError(other); !errors.Is(got, other) {
		t.Errorf("a second reason was lost: %v", got)
	}
}
