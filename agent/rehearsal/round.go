// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package rehearsal

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "bulkhead/proto/agent/v1"
)

// host is what a round is made with.
type host struct {
	with   *agentv1.Rehearsal
	bus    *broker
	relays *relays
}

const (
	said     = "said\n"
	endOfTTY = "\x04" // ends the input of a terminal at the beginning of a line
)

// round is the life of one container: with a terminal and without in turns, ended by itself or killed in turns.
func (h *host) round(ctx context.Context, n int) error {
	if n == 0 {
		if err := h.settle(ctx); err != nil {
			return err
		}
	}
	terminal, killed := n%2 == 1, n%2 == 0
	init, key := h.relays.open(), name+strconv.Itoa(n)
	s, err := spec(h.with.GetProgram(), terminal)
	if err != nil {
		return err
	}
	config, err := json.Marshal(s)
	if err != nil {
		return err
	}
	create := &agentv1.CreateRequest{
		Container: key, Config: string(config), Channel: init.channel, Rootfs: h.with.GetRootfs(), Id: key, Bundle: "/" + key,
		Shares: []*agentv1.ShareMount{{Destination: hostsFile, Source: h.with.GetFile(), ReadOnly: true}},
	}
	if err := h.bus.ask(ctx, "create", create, &agentv1.CreateReply{}); err != nil {
		return err
	}
	if err := h.bus.ask(ctx, "start", &agentv1.StartRequest{Container: key}, &agentv1.StartReply{}); err != nil {
		return err
	}
	for i, tty := range []bool{false, true, false} {
		if err := h.exec(ctx, key, strconv.Itoa(i), tty); err != nil {
			return fmt.Errorf("exec %d: %w", i, err)
		}
	}
	if err := h.bus.ask(ctx, "status", &agentv1.StatusRequest{}, &agentv1.StatusReply{}); err != nil {
		return err
	}
	if err := h.bus.ask(ctx, "stats", &agentv1.StatsRequest{Container: key}, &agentv1.StatsReply{}); err != nil {
		return err
	}
	code := 0
	switch {
	case killed:
		code = 128 + int(unix.SIGKILL)
		err = h.bus.ask(ctx, "signal", &agentv1.SignalRequest{Container: key, Signal: int32(unix.SIGKILL)}, &agentv1.SignalReply{})
	case terminal:
		err = init.input(said+endOfTTY, false)
	}
	if err != nil {
		return err
	}
	if err := init.wait(ctx, code, ""); err != nil {
		return err
	}
	return h.bus.ask(ctx, "delete", &agentv1.DeleteRequest{Container: key}, &agentv1.DeleteReply{})
}

// settle is what comes before a first container.
func (h *host) settle(ctx context.Context) error {
	if err := useMessages(); err != nil {
		return err
	}
	configure := proto.CloneOf(h.with.GetConfigure())
	if configure == nil {
		configure = &agentv1.ConfigureRequest{}
	}
	configure.Vm = name
	if err := h.bus.ask(ctx, "configure", configure, &agentv1.ConfigureReply{}); err != nil {
		return err
	}
	return h.bus.ask(ctx, "network", &agentv1.NetworkRequest{Revision: 1}, &agentv1.NetworkReply{})
}

// exec runs one more process, which repeats what it is told.
func (h *host) exec(ctx context.Context, key, id string, terminal bool) error {
	r := h.relays.open()
	process, err := json.Marshal(program(h.with.GetProgram(), terminal))
	if err != nil {
		return err
	}
	request := &agentv1.ExecRequest{Container: key, ExecId: id, Process: string(process), Channel: r.channel}
	if err := h.bus.ask(ctx, "exec", request, &agentv1.ExecReply{}); err != nil {
		return err
	}
	if terminal {
		err = r.input(said+endOfTTY, false)
	} else {
		err = r.input(said, true)
	}
	if err != nil {
		return err
	}
	return r.wait(ctx, 0, said[:len(said)-1]) // a terminal ends its lines in its own way
}

// program is the process that engines ask for when a person gives a command.
func program(path string, terminal bool) *specs.Process {
	p := &specs.Process{
		Args: []string{path}, Cwd: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
		Terminal:     terminal,
	}
	if terminal {
		p.Env, p.ConsoleSize = append(p.Env, "TERM=xterm"), &specs.Box{Height: 24, Width: 80}
	}
	return p
}
