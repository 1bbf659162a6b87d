// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command netprobe is both ends of a network that is to be shown or measured: it
// serves, asks, and complains of whatever is not as it must be. Tests and the
// benchmark put it into containers and run it beside them; it is built static.
//
// It imports nothing of ours. The invariant: an answer on standard output, in
// JSON, means that all of what was asked for came about; everything else is a
// sentence on standard error and an exit code above 0.
//
// usage: netprobe [-for DURATION] [-bytes N] [-n N] [-size N] COMMAND [ADDRESS]
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// settings are the flags, of which each command takes those that it knows.
type settings struct {
	duration time.Duration // how long to measure
	limit    time.Duration // how long the whole may take
	bytes    int64         // how much to transfer
	n        int           // how many connections, messages or requests at once
	size     int           // of a message
	tcp      bool          // ask for names by TCP
}

// command does something with an address and gives what is worth to be told.
type command func(ctx context.Context, s settings, address string) (any, error)

var commands = map[string]command{
	"serve":     serve,
	"upload":    upload,
	"download":  download,
	"parallel":  parallel,
	"halfclose": halfClose,
	"reset":     reset,
	"refused":   refused,
	"datagram":  datagram,
	"pathmtu":   pathMTU,
	"lookup":    lookup,
	"steady":    steady,
	"send":      send,
	"receive":   receive,
	"roundtrip": roundTrip,
	"rate":      rate,
	"backrate":  backRate,
	"flood":     flood,
	"inject":    inject,
	"requests":  requests,
	"get":       read,
}

func main() {
	var s settings
	flag.DurationVar(&s.duration, "for", 2*time.Second, "how long to measure")
	flag.DurationVar(&s.limit, "limit", time.Minute, "how long it may take; serve knows no limit")
	flag.Int64Var(&s.bytes, "bytes", 1<<30, "how much to transfer")
	flag.IntVar(&s.n, "n", 1, "how many connections, messages or requests")
	flag.IntVar(&s.size, "size", 64, "of a message")
	flag.BoolVar(&s.tcp, "tcp", false, "ask for names by TCP")
	flag.Parse()
	if err := run(s, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "netprobe:", err)
		os.Exit(1)
	}
}

func run(s settings, args []string) error {
	if len(args) != 2 || commands[args[0]] == nil {
		names := make([]string, 0, len(commands))
		for name := range commands {
			names = append(names, name)
		}
		slices.Sort(names)
		return fmt.Errorf("it wants one of the commands %s, and an address", strings.Join(names, ", "))
	}
	ctx := context.Background()
	if args[0] != "serve" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.limit)
		defer cancel()
	}
	told, err := commands[args[0]](ctx, s, args[1])
	if err != nil {
		return fmt.Errorf("%s %s: %w", args[0], args[1], err)
	}
	return json.NewEncoder(os.Stdout).Encode(told)
}
