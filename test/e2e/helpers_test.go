// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/test/e2e/host"
)

const (
	// commandTime bounds a command that starts no VM.
	commandTime = 2 * time.Minute
	// launchTime bounds a command that does, on a busy machine under emulation.
	launchTime = 5 * time.Minute
	// cleanTime bounds the wait for the traces of whatever died to go: the 10 s that are promised, on a machine that has other things to do.
	cleanTime = time.Minute
	// deathTime bounds the wait for the news of a death: the 2 s that are promised, on a machine that has other things to do.
	deathTime = 20 * time.Second
)

// within is a context of the test with a deadline.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually repeats a look at the world until it pleases or ctx ends, and then
// gives what was wrong last. The tests look from outside, where no event tells.
func eventually(ctx context.Context, look func() error) error {
	const pause = 50 * time.Millisecond
	for {
		err := look()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// must fails the test unless look pleases in time.
func must(t *testing.T, d time.Duration, look func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := eventually(ctx, look); err != nil {
		t.Fatalf("not within %s: %v", d, err)
	}
}

// stands waits until a text that would grow ten times a second does not: what was written before may still be on its way.
func stands(t *testing.T, what string, text func() string) (now string) {
	t.Helper()
	const stillness = 2 * time.Second
	now = text()
	must(t, commandTime, func() error {
		before := now
		time.Sleep(stillness)
		if now = text(); now != before {
			return fmt.Errorf("%s grows from %d to %d bytes", what, len(before), len(now))
		}
		return nil
	})
	return now
}

// newID is an id that carries the ground's token and what it is for.
func newID(what string) string {
	random := make([]byte, 3)
	_, _ = rand.Read(random) // never fails
	return ground.Token + "-" + what + "-" + hex.EncodeToString(random)
}

// logOnFailure shows what the files gained during the test, if it fails.
func logOnFailure(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		var before int64
		if info, err := os.Stat(path); err == nil {
			before = info.Size()
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the end of %s:\n%s", path, host.Tail(path, before, 40))
			}
		})
	}
}

// consolesOnFailure shows what the guests' kernels said, of all VMs that still have a record. It is to be deferred after the
// removal of containers, with which the record goes.
func consolesOnFailure(t *testing.T) {
	t.Helper()
	if !t.Failed() {
		return
	}
	err := filepath.WalkDir(ground.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "console.log" {
			t.Logf("the end of %s:\n%s", path, host.Tail(path, 0, 80))
		}
		return nil // others' VMs come and go
	})
	if err != nil {
		t.Logf("the guests' consoles: %v", err)
	}
}

// sentence fails the test unless the text has what a person needs: it names all
// of the words and no stack or Go value.
func sentence(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(word)) {
			t.Errorf("%q does not say %q", text, word)
		}
	}
	for _, noise := range []string{"goroutine ", "panic:", "%!", "0xc000", "<nil>"} {
		if strings.Contains(text, noise) {
			t.Errorf("%q is no sentence for a person: it holds %q", text, noise)
		}
	}
	if strings.TrimSpace(text) == "" {
		t.Error("nothing is said")
	}
}

// gone complains while a path exists.
func gone(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is still there", path)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
