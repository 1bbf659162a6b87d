// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// measure is one number.
type measure struct {
	name, unit string
	take       func(ctx context.Context, b *bench, one *berth) (float64, error)
}

var measures = []measure{
	{"tcp_out", "Mbit/s", func(ctx context.Context, b *bench, one *berth) (float64, error) {
		return b.throughput(ctx, one, "receive")
	}},
	{"tcp_in", "Mbit/s", func(ctx context.Context, b *bench, one *berth) (float64, error) {
		return b.throughput(ctx, one, "send")
	}},
	{"udp_out", "packets/s", func(ctx context.Context, b *bench, one *berth) (float64, error) {
		return b.perSecond(ctx, one, "backrate", far+":7000")
	}},
	{"udp_in", "packets/s", func(ctx context.Context, b *bench, one *berth) (float64, error) {
		return b.perSecond(ctx, one, "rate", far+":7000")
	}},
	{"rtt", "ms", func(ctx context.Context, b *bench, one *berth) (float64, error) {
		var answer struct {
			Median float64 `json:"median_ms"`
		}
		err := one.ask(ctx, &answer, "-n", "300", "roundtrip", far+":7000")
		return answer.Median, err
	}},
	{"requests", "1/s", func(ctx context.Context, b *bench, one *berth) (float64, error) {
		return b.perSecond(ctx, one, "-n", "16", "requests", far+":7001")
	}},
}

func (b *bench) throughput(ctx context.Context, one *berth, command string) (float64, error) {
	var answer struct {
		Bytes   float64
		Seconds float64
	}
	if err := one.ask(ctx, &answer, "-for", b.duration.String(), command, far+":7000"); err != nil {
		return 0, err
	}
	return answer.Bytes * 8 / 1e6 / answer.Seconds, nil
}

func (b *bench) perSecond(ctx context.Context, one *berth, args ...string) (float64, error) {
	var answer struct {
		Rate float64 `json:"per_second"`
	}
	err := one.ask(ctx, &answer, append([]string{"-for", b.duration.String()}, args...)...)
	return answer.Rate, err
}

// measure takes all samples; a first one of each is not kept.
func (b *bench) measure(ctx context.Context) (*results, error) {
	r := newResults(ctx, b)
	for _, m := range measures {
		if !b.only.MatchString(m.name) {
			continue
		}
		for i := range b.n + 1 {
			for _, one := range b.berths {
				progress("%s %s %d/%d", m.name, one.name, i, b.n)
				value, err := m.take(ctx, b, one)
				if err != nil {
					return nil, err
				}
				if i > 0 {
					r.add(m, one.name, value)
				}
			}
		}
	}
	progress("")
	return r, nil
}

// progress tells a person at a terminal what is going on.
func progress(format string, args ...any) {
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		fmt.Fprintf(os.Stderr, "\r\x1b[K"+format, args...)
	}
}
