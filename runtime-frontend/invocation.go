// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	"bulkhead/bus/config"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
)

// invocation is one run of a command: its flags and arguments, and the
// connection to the bus, made when it is first needed.
type invocation struct {
	*globals
	*cli.Command

	cfg  *config.Config
	conn *bus.Conn
}

func (inv *invocation) close() {
	if inv.conn != nil {
		inv.conn.Close()
	}
}

// id is the first argument.
func (inv *invocation) id() (string, error) {
	id := inv.Args().First()
	return id, checkID(id)
}

// ref names the container of the first argument within the root.
func (inv *invocation) ref() (*vmv1.ContainerRef, error) {
	if err := inv.check(); err != nil {
		return nil, err
	}
	id, err := inv.id()
	if err != nil {
		return nil, err
	}
	return &vmv1.ContainerRef{Root: inv.root, Id: id}, nil
}

// format is the --format of commands that print for people and for programs.
func (inv *invocation) format() (string, error) {
	format := inv.String("format")
	if format != "table" && format != "json" {
		return "", fmt.Errorf("invalid format option %q: use table or json", format)
	}
	return format, nil
}

// settings loads the configuration once.
func (inv *invocation) settings() (*config.Config, error) {
	if inv.cfg == nil {
		cfg, err := config.Load(inv.globals.config)
		if err != nil {
			return nil, err
		}
		inv.cfg = cfg
	}
	return inv.cfg, nil
}

// bundleOptions are what bundles and processes are judged by beside themselves.
func (inv *invocation) bundleOptions() (bundle.Options, error) {
	cfg, err := inv.settings()
	if err != nil {
		return bundle.Options{}, err
	}
	return bundle.Options{SystemdCgroup: inv.systemdCgroup, SELinux: cfg.VM.SELinux}, nil
}

// dial connects to the bus once.
func (inv *invocation) dial(ctx context.Context) (*bus.Conn, error) {
	if inv.conn != nil {
		return inv.conn, nil
	}
	cfg, err := inv.settings()
	if err != nil {
		return nil, err
	}
	conn, err := bus.Dial(ctx, cfg.Host.RunDir, "bulkhead "+inv.Name)
	if err != nil {
		return nil, err
	}
	inv.conn = conn
	return conn, nil
}

// call asks the vm service for one thing.
func call[Resp any, PResp interface {
	*Resp
	proto.Message
}](ctx context.Context, inv *invocation, method string, req proto.Message) (PResp, error) {
	conn, err := inv.dial(ctx)
	if err != nil {
		return nil, err
	}
	if bus.OperationFrom(ctx) == "" {
		ctx = bus.WithOperation(ctx, bus.NewOperationID())
	}
	inv.reporter().Debug("calling vm.%s, operation %s", method, bus.OperationFrom(ctx))
	return bus.Call[Resp, PResp](ctx, conn, conn.Subject("vm", method), req)
}

// lookUp reads the record of a container.
func lookUp(ctx context.Context, inv *invocation, ref *vmv1.ContainerRef) (*vmv1.Container, error) {
	reply, err := call[vmv1.StateReply](ctx, inv, "state", &vmv1.StateRequest{Ref: ref})
	if bus.ReasonOf(err) == bus.NotFound {
		return nil, errNotFound
	}
	if err != nil {
		return nil, err
	}
	if reply.GetContainer() == nil {
		return nil, errNotFound
	}
	return reply.GetContainer(), nil
}

// errNotFound has the words by which engines know that a container is gone.
var errNotFound = bus.Errorf(bus.NotFound, "container does not exist")

const maxID = 1024

// checkID follows runc's rule for container ids.
func checkID(id string) error {
	if id == "" {
		return fmt.Errorf("container id cannot be empty")
	}
	foreign := func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("_+.-", c))
	}
	if id == "." || id == ".." || len(id) > maxID || strings.ContainsFunc(id, foreign) {
		return fmt.Errorf("invalid container id %q: use 1 to %d of A-Z a-z 0-9 _ + . -", id, maxID)
	}
	return nil
}

// orNotFound gives the failure of a service for an unknown container the words
// that engines know.
func orNotFound(err error) error {
	if bus.ReasonOf(err) == bus.NotFound {
		return errNotFound
	}
	return err
}
