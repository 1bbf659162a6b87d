// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"bulkhead/test/e2e/host"
)

// noise is a stream of bytes that is the same for a seed.
func noise(size int64, seed byte) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
}

// digest reads a stream to its end.
type digest struct {
	hash.Hash
	size int64
}

func newDigest() *digest { return &digest{Hash: sha256.New()} }

func (d *digest) Write(p []byte) (int, error) {
	d.size += int64(len(p))
	return d.Hash.Write(p)
}

func (d *digest) String() string { return fmt.Sprintf("%d bytes, sha256 %x", d.size, d.Sum(nil)) }

// pipe runs "docker run -i" from a reader to a writer.
func (d dockerUser) pipe(limit time.Duration, in io.Reader, out io.Writer, command ...string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), limit)
	defer cancel()
	args := d.engine.Args(runArgs(opts("--rm", "-i"), command...)...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(cmd.Environ(), d.engine.Env()...)
	cmd.WaitDelay = host.HoldTime
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &stderr
	if err := cmd.Run(); err != nil {
		d.t.Fatalf("docker run -i %v: %v (%v): %s", command, err, ctx.Err(), stderr.String())
	}
}

func TestAQuarterGibibytePassesBothWaysUnchanged(t *testing.T) {
	d := newDocker(t)
	const size = 256 << 20
	sent, got := newDigest(), newDigest()
	began := time.Now()
	d.pipe(5*time.Minute, io.TeeReader(noise(size, 1), sent), got, "cat")
	expect(t, "what came back", got.String(), sent.String())
	t.Logf("%d MiB there and back in %s", size>>20, time.Since(began).Round(time.Millisecond))
}

func TestInputArrivesWholeInTheContainer(t *testing.T) {
	d := newDocker(t)
	const size = 8<<20 + 4321
	sent := newDigest()
	var out bytes.Buffer
	d.pipe(launchTime, io.TeeReader(noise(size, 2), sent), &out, "sha256sum")
	expect(t, "the digest seen in the container", strings.Fields(out.String())[0], hex.EncodeToString(sent.Sum(nil)))
}

func TestStdoutAndStderrStayApart(t *testing.T) {
	r := newDocker(t).tryRun(nil, "sh", "-c", "echo out; echo err >&2; echo out again")
	expect(t, "stdout", r.Stdout, "out\nout again\n")
	expect(t, "stderr", r.Stderr, "err\n")
}

func TestTheLastBytesBeforeAnExitAreNotLost(t *testing.T) {
	d := newDocker(t)
	const lines = 20000
	r := d.tryRun(nil, "sh", "-c", fmt.Sprintf("seq %d; exit 3", lines))
	expect(t, "the exit code", r.Code, 3)
	var want strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintln(&want, i)
	}
	if r.Stdout != want.String() {
		t.Errorf("%d bytes came instead of %d, ending %q", len(r.Stdout), want.Len(), r.Stdout[max(0, len(r.Stdout)-40):])
	}
}

func TestTheEndOfInputReachesTheProgram(t *testing.T) {
	r := newDocker(t).tryFor(launchTime, strings.NewReader(""), runArgs(opts("--rm", "-i"), "sh", "-c", "cat; echo the end")...)
	expect(t, "stdout", r.Stdout, "the end\n")
}

func TestAChildThatHoldsTheOutputDoesNotHoldTheExit(t *testing.T) {
	d := newDocker(t)
	began := time.Now()
	r := d.tryRun(nil, "sh", "-c", "sleep 300 & echo done; exit 5")
	expect(t, "the exit code", r.Code, 5)
	expect(t, "stdout", r.Stdout, "done\n")
	if took := time.Since(began); took > launchTime/2 {
		t.Errorf("it took %s", took)
	}
}
