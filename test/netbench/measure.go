// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// measure is one number, and what it cost.
type measure struct {
	name, unit string
	take       func(ctx context.Context, b *bench, one *berth) (sample, error)
}

// sample is a number and how many things were moved for it, in units by which the
// processor time is told.
type sample struct {
	value float64
	moved float64
}

var measures = []measure{
	{"tcp_out", "Mbit/s", func(ctx context.Context, b *bench, one *berth) (sample, error) {
		return b.throughput(ctx, one, "receive")
	}},
	{"tcp_in", "Mbit/s", func(ctx context.Context, b *bench, one *berth) (sample, error) { return b.throughput(ctx, one, "send") }},
	{"udp_out", "packets/s", func(ctx context.Context, b *bench, one *berth) (sample, error) {
		return b.perSecond(ctx, one, "backrate", far+":7000")
	}},
	{"udp_in", "packets/s", func(ctx context.Context, b *bench, one *berth) (sample, error) {
		return b.perSecond(ctx, one, "rate", far+":7000")
	}},
	{"rtt", "ms", func(ctx context.Context, _ *bench, one *berth) (sample, error) {
		var answer struct {
			Median float64 `json:"median_ms"`
		}
		const n = 300
		err := one.ask(ctx, &answer, "-n", fmt.Sprint(n), "roundtrip", far+":7000")
		return sample{answer.Median, n}, err
	}},
	{"requests", "1/s", func(ctx context.Context, b *bench, one *berth) (sample, error) {
		return b.perSecond(ctx, one, "-n", "16", "requests", far+":7001")
	}},
}

// throughput moves megabytes.
func (b *bench) throughput(ctx context.Context, one *berth, command string) (sample, error) {
	var answer struct {
		Bytes   float64
		Seconds float64
	}
	if err := one.ask(ctx, &answer, "-for", b.duration.String(), command, far+":7000"); err != nil {
		return sample{}, err
	}
	return sample{answer.Bytes * 8 / 1e6 / answer.Seconds, answer.Bytes / 1e6}, nil
}

// perSecond moves packets or requests.
func (b *bench) perSecond(ctx context.Context, one *berth, args ...string) (sample, error) {
	var answer struct {
		Rate float64 `json:"per_second"`
	}
	err := one.ask(ctx, &answer, append([]string{"-for", b.duration.String()}, args...)...)
	return sample{answer.Rate, answer.Rate * b.duration.Seconds()}, err
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
				before, err := one.times()
				if err != nil {
					return nil, err
				}
				s, err := m.take(ctx, b, one)
				if err != nil {
					return nil, err
				}
				after, err := one.times()
				if err != nil {
					return nil, err
				}
				if i > 0 {
					r.add(m, one.name, s, after.since(before))
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
