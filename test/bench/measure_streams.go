// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// echoTime bounds one keystroke, transferTime one transfer.
const (
	echoTime     = 10 * time.Second
	transferTime = 3 * time.Minute
)

// measureEcho takes what a person at a terminal feels.
func measureEcho(ctx context.Context, b *bench) error {
	n := b.samples(100)
	for _, rt := range b.runtimes("echo_rtt") {
		b.progress("%secho_rtt", rt.prefix)
		if err := b.echoes(ctx, rt, n); err != nil {
			return err
		}
	}
	return nil
}

// echoes types n keys, each when the echo of the one before has come. A line
// of a terminal holds 4095 of them.
func (b *bench) echoes(ctx context.Context, rt *runtime, n int) (err error) {
	c, master, err := b.withConsole(ctx, rt, "echo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.remove(ctx)) }()
	defer master.Close()
	if err := b.calm(ctx); err != nil {
		return err
	}
	for i := range min(n, 4000) + 1 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := master.SetDeadline(time.Now().Add(echoTime)); err != nil {
			return err
		}
		key := []byte{'a' + byte(i%26)}
		began := time.Now()
		if _, err := master.Write(key); err != nil {
			return fmt.Errorf("type a key: %w", err)
		}
		var echo [1]byte
		if _, err := master.Read(echo[:]); err != nil {
			return rt.explain(fmt.Errorf("wait for the echo of key %d: %w", i, err))
		}
		rtt := time.Since(began)
		if echo[0] != key[0] {
			return fmt.Errorf("the terminal echoed %q for %q", echo[:], key)
		}
		if i > 0 { // the first one waits for the program's start
			b.results.addTime(rt.prefix+"echo_rtt", rtt)
		}
	}
	return nil
}

// transferBytes is how much a transfer moves.
func (b *bench) transferBytes() int64 {
	if b.quick {
		return quickBytes
	}
	return writeBytes
}

// measureStdout takes the way of a container's output to its reader.
func measureStdout(ctx context.Context, b *bench) error {
	return b.transfers(ctx, "stdout_rate", b.readOutput)
}

// measureStdin takes the way of a container's input.
func measureStdin(ctx context.Context, b *bench) error {
	return b.transfers(ctx, "stdin_rate", b.writeInput)
}

func (b *bench) transfers(ctx context.Context, name string, transfer func(context.Context, *runtime, string) (time.Duration, error)) error {
	n := min(b.samples(5), 10)
	for i := range n {
		for _, rt := range b.runtimes(name) {
			b.progress("%s%s %d/%d", rt.prefix, name, i+1, n)
			took, err := transfer(ctx, rt, name+"-"+strconv.Itoa(i))
			if err != nil {
				return fmt.Errorf("%s%s: %w", rt.prefix, name, err)
			}
			b.results.add(rt.prefix+name, "MB/s", float64(b.transferBytes())/1e6/took.Seconds())
		}
	}
	return nil
}

// readOutput reads all that a container writes, and counts it.
func (b *bench) readOutput(ctx context.Context, rt *runtime, id string) (_ time.Duration, err error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	bundle := b.bundles.writer
	if b.quick {
		bundle = b.bundles.quick
	}
	c, err := rt.launch(ctx, id, bundle, stdio{out: writer})
	writer.Close() // the relay's is the last one: the reader sees its end
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.remove(ctx)) }()
	if err := b.calm(ctx); err != nil { // meanwhile the windows fill, which is half a hundredth of all
		return 0, err
	}
	defer stopAt(ctx, reader)()
	buf := make([]byte, 1<<20)
	n, err := reader.Read(buf)
	if err != nil {
		return 0, rt.explain(fmt.Errorf("read the first byte: %w", err))
	}
	began := time.Now()
	total := int64(n)
	last := began
	for {
		n, err := reader.Read(buf)
		total += int64(n)
		if n > 0 {
			last = time.Now()
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, rt.explain(fmt.Errorf("read after %d bytes: %w", total, err))
		}
	}
	if total != b.transferBytes() {
		return 0, fmt.Errorf("%d bytes came of %d", total, b.transferBytes())
	}
	return last.Sub(began), c.wait(ctx)
}

// writeInput feeds a container until it says how much it got.
func (b *bench) writeInput(ctx context.Context, rt *runtime, id string) (_ time.Duration, err error) {
	inReader, in, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, outWriter, err := os.Pipe()
	if err != nil {
		return 0, errors.Join(err, inReader.Close())
	}
	defer out.Close()
	c, err := rt.launch(ctx, id, b.bundles.reader, stdio{in: inReader, out: outWriter})
	inReader.Close()
	outWriter.Close()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.remove(ctx)) }()
	if err := b.calm(ctx); err != nil {
		return 0, err
	}
	defer stopAt(ctx, in, out)()
	block := make([]byte, blockBytes)
	began := time.Now()
	for range b.transferBytes() / blockBytes {
		if _, err := in.Write(block); err != nil {
			return 0, rt.explain(fmt.Errorf("write: %w", err))
		}
	}
	in.Close()
	said, err := io.ReadAll(out)
	took := time.Since(began)
	if err != nil {
		return 0, rt.explain(fmt.Errorf("read what the container counted: %w", err))
	}
	// busybox's dd counts whole blocks, and what is not one behind the "+".
	if blocks := fmt.Sprintf("%d+0 records in", b.transferBytes()/blockBytes); !bytes.Contains(said, []byte(blocks)) {
		return 0, fmt.Errorf("%d bytes went in, and dd says %q instead of %q", b.transferBytes(), said, blocks)
	}
	return took, c.wait(ctx)
}

// stopAt gives pipes a deadline, which comes at once when ctx ends.
func stopAt(ctx context.Context, pipes ...*os.File) (stop func() bool) {
	set := func(at time.Time) {
		for _, p := range pipes {
			_ = p.SetDeadline(at) // pipes of os.Pipe have deadlines
		}
	}
	set(time.Now().Add(transferTime))
	return context.AfterFunc(ctx, func() { set(time.Now()) })
}
