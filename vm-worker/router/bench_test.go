// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// BenchmarkEcho is the round trip of one byte: engine, relay, router, link,
// agent, a process that answers, and back.
func BenchmarkEcho(b *testing.B) {
	r := newRig(b)
	c := r.run(1, []string{"cat"})
	buf := []byte{'x'}
	for b.Loop() {
		c.stdin.Write(buf)
		if _, err := io.ReadFull(c.stdout, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOutput is what a process can write to the engine.
func BenchmarkOutput(b *testing.B) {
	r := newRig(b)
	c := r.run(1, []string{"cat", "/dev/zero"})
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := io.ReadFull(c.stdout, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRelayMemory reports the proportional set size of idle relays.
func BenchmarkRelayMemory(b *testing.B) {
	for _, n := range []int{1, 10} {
		for _, used := range []bool{false, true} {
			b.Run(fmt.Sprintf("relays=%d/used=%v", n, used), func(b *testing.B) {
				var total int
				for b.Loop() {
					total = relayMemory(b, n, used)
				}
				b.ReportMetric(float64(total)/float64(n), "KiB-PSS/relay")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

func relayMemory(b *testing.B, n int, used bool) (kib int) {
	r := newRig(b)
	var all []*container
	for i := range n {
		c := r.run(uint32(i+1), []string{"cat"})
		if used {
			go c.stdin.Write(make([]byte, 32<<20))
			io.CopyN(io.Discard, c.stdout, 32<<20)
		}
		all = append(all, c)
	}
	runtime.GC()
	time.Sleep(3 * time.Second) // the runtime of the relays gives memory back in its own time
	for _, c := range all {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", c.relay.PID))
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var v int
			if k, _ := fmt.Sscanf(line, "Pss: %d kB", &v); k == 1 {
				kib += v
			}
		}
	}
	return kib
}
