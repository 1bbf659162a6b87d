// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
)

var updateCommand = command{
	name: "update", usage: "change the limits of a container", args: "ID",
	description: "Changes the limits of a container that is created, running or paused: on the host, in its virtual machine, and the\n" +
		"machine's size with them. What is not given, or zero, stays as it is; -1 takes a limit away.",
	flags:   updateFlags,
	minArgs: 1, maxArgs: 1, deadline: commandDeadline,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		resources, err := askedResources(inv)
		if err != nil {
			return fmt.Errorf("update: %w", err)
		}
		text, err := json.Marshal(resources)
		if err != nil {
			return fmt.Errorf("update: %w", err)
		}
		_, err = call[vmv1.UpdateReply](ctx, inv, "update", &vmv1.UpdateRequest{Ref: ref, Resources: string(text)})
		return orNotFound(err)
	},
}

// resourceFlags are the limits that can be given one by one, with runc's names.
var resourceFlags = []struct {
	name, usage string
	set         func(r *specs.LinuxResources, text string) error
}{
	{"blkio-weight", "`WEIGHT` of the container's input and output, 10 to 1000", func(r *specs.LinuxResources, s string) error {
		return number(s, 16, func(n uint64) { r.BlockIO = &specs.LinuxBlockIO{Weight: new(uint16(n))} })
	}},
	{"cpu-period", "length of a period of CPU time in `MICROSECONDS`", func(r *specs.LinuxResources, s string) error {
		return number(s, 64, func(n uint64) { cpu(r).Period = &n })
	}},
	{"cpu-quota", "CPU time in each period in `MICROSECONDS`, -1 for no limit", func(r *specs.LinuxResources, s string) error {
		return integer(s, func(n int64) { cpu(r).Quota = &n })
	}},
	{"cpu-burst", "unused CPU time that can be saved up in `MICROSECONDS`", func(r *specs.LinuxResources, s string) error {
		return number(s, 64, func(n uint64) { cpu(r).Burst = &n })
	}},
	{"cpu-share", "`WEIGHT` of the container's CPU time against others', 2 to 262144", func(r *specs.LinuxResources, s string) error {
		return number(s, 64, func(n uint64) { cpu(r).Shares = &n })
	}},
	{"cpu-idle", "1: run only when all else is idle; 0: as others", func(r *specs.LinuxResources, s string) error {
		return integer(s, func(n int64) { cpu(r).Idle = &n })
	}},
	{"cpu-rt-period", "not supported", func(r *specs.LinuxResources, s string) error {
		return number(s, 64, func(n uint64) { cpu(r).RealtimePeriod = &n })
	}},
	{"cpu-rt-runtime", "not supported", func(r *specs.LinuxResources, s string) error {
		return integer(s, func(n int64) { cpu(r).RealtimeRuntime = &n })
	}},
	{"cpuset-cpus", "the host's `CPUS` to use, as 0-2,7", func(r *specs.LinuxResources, s string) error { cpu(r).Cpus = s; return nil }},
	{"cpuset-mems", "the host's memory `NODES` to use", func(r *specs.LinuxResources, s string) error { cpu(r).Mems = s; return nil }},
	{"kernel-memory", "not supported", func(r *specs.LinuxResources, s string) error {
		return size(s, func(n int64) { memory(r).Kernel = &n })
	}},
	{"kernel-memory-tcp", "not supported", func(r *specs.LinuxResources, s string) error {
		return size(s, func(n int64) { memory(r).KernelTCP = &n })
	}},
	{"memory", "limit of memory in `BYTES`, also as 512m; -1 for none", func(r *specs.LinuxResources, s string) error {
		return size(s, func(n int64) { memory(r).Limit = &n })
	}},
	{"memory-reservation", "memory to leave the container in `BYTES` when there is little", func(r *specs.LinuxResources, s string) error {
		return size(s, func(n int64) { memory(r).Reservation = &n })
	}},
	{"memory-swap", "limit of memory and swap together in `BYTES`; -1 for none", func(r *specs.LinuxResources, s string) error {
		return size(s, func(n int64) { memory(r).Swap = &n })
	}},
	{"pids-limit", "largest `NUMBER` of processes and threads; -1 for no limit", func(r *specs.LinuxResources, s string) error {
		return integer(s, func(n int64) { r.Pids = &specs.LinuxPids{Limit: &n} })
	}},
}

// foreignFlags are runc's for what the host's processor alone has.
var foreignFlags = []string{"l3-cache-schema", "mem-bw-schema"}

func updateFlags() []cli.Flag {
	flags := []cli.Flag{&cli.StringFlag{Name: "resources", Aliases: []string{"r"}, Usage: "`FILE` with a linux.resources of the OCI runtime-spec, - for standard input"}}
	for _, f := range resourceFlags {
		flag := &cli.StringFlag{Name: f.name, Usage: f.usage}
		if f.name == "cpu-share" {
			flag.Aliases = []string{"cpu-shares"}
		}
		flags = append(flags, flag)
	}
	for _, name := range foreignFlags {
		flags = append(flags, &cli.StringFlag{Name: name, Usage: "not supported"})
	}
	return flags
}

// askedResources are those of --resources, or of the flags, found good.
func askedResources(inv *invocation) (*specs.LinuxResources, error) {
	for _, name := range foreignFlags {
		if inv.IsSet(name) {
			return nil, fmt.Errorf("--%s: cache and memory bandwidth allocation is the host processor's and is not passed into virtual machines", name)
		}
	}
	r, given := &specs.LinuxResources{}, ""
	for _, f := range resourceFlags {
		text := inv.String(f.name)
		if text == "" { // runc: as if it were not there
			continue
		}
		if err := f.set(r, text); err != nil {
			return nil, fmt.Errorf("invalid value %q for --%s: %w", text, f.name, err)
		}
		given = f.name
	}
	path := inv.String("resources")
	if path == "" {
		return r, bundle.CheckResources(r)
	}
	if given != "" {
		return nil, fmt.Errorf("--resources holds all limits: give no --%s beside it", given)
	}
	text, err := readResources(path, inv.std.In)
	if err != nil {
		return nil, fmt.Errorf("reading the resources: %w", err)
	}
	return bundle.ReadResources(text)
}

// maxResources bounds the text of an update; engines write some hundred bytes.
const maxResources = 256 << 10

func readResources(path string, in *os.File) ([]byte, error) {
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxResources+1))
	if err == nil && len(text) > maxResources {
		err = fmt.Errorf("%q is longer than %d bytes", path, maxResources)
	}
	return text, err
}

func cpu(r *specs.LinuxResources) *specs.LinuxCPU {
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	return r.CPU
}

func memory(r *specs.LinuxResources) *specs.LinuxMemory {
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	return r.Memory
}

func number(text string, bits int, set func(uint64)) error {
	n, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		return plain(err)
	}
	set(n)
	return nil
}

func integer(text string, set func(int64)) error {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return plain(err)
	}
	set(n)
	return nil
}

// plain is a fault of a number without the name of the function that found it.
func plain(err error) error {
	var fault *strconv.NumError
	if errors.As(err, &fault) {
		return fault.Err
	}
	return err
}

// size reads an amount of memory, as 1048576, 1m or -1.
func size(text string, set func(int64)) error {
	n := int64(-1)
	if text != "-1" {
		var err error
		if n, err = units.RAMInBytes(text); err != nil {
			return err
		}
	}
	set(n)
	return nil
}
