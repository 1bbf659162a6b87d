// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"bulkhead/test/e2e/host"
)

const ctrPath = "/usr/bin/ctr"

// CtrImage is the image of the engine as containerd itself names it.
const CtrImage = "docker.io/library/" + Image

// Ctr is containerd's own client, without dockerd: it names the runtime's binary
// to the runc shim (BinaryName).
type Ctr struct {
	engine *Engine
	binary string
}

// ctrNamespace is the one of containerd in which ctr works; dockerd has another.
const ctrNamespace = "e2e"

// NewCtr gives the containerd of an engine the image, and a client of it that
// uses a runtime.
func (e *Engine) NewCtr(ctx context.Context, r Runtime) (*Ctr, error) {
	c := &Ctr{engine: e, binary: filepath.Join(e.dir, "runtime-of-ctr")}
	if err := writeWrapper(c.binary, r); err != nil {
		return nil, err
	}
	archive := filepath.Join(e.dir, "image.tar")
	for _, argv := range [][]string{
		e.Args("save", "--output", archive, Image),
		c.Args("images", "import", archive),
	} {
		if err := succeed(host.Run(ctx, nil, e.Env(), argv...)); err != nil {
			return nil, fmt.Errorf("give the image to containerd: %w", err)
		}
	}
	return c, nil
}

// Args is the command line of a ctr command.
func (c *Ctr) Args(args ...string) []string {
	return append([]string{ctrPath, "--address", c.engine.containerdAddress(), "--namespace", ctrNamespace}, args...)
}

// RunArgs are the arguments of "ctr run" for a container with a name; it has no
// network but the loopback device, as is ctr's default.
func (c *Ctr) RunArgs(options []string, name string, command ...string) []string {
	args := []string{"run", "--runc-binary", c.binary, "--runc-root", filepath.Join(c.engine.dir, "ctr-root"),
		"--fifo-dir", c.fifos(), "--cgroup", "/" + c.engine.ctrParent() + "/" + name}
	return append(append(append(args, options...), CtrImage, name), command...)
}

// ctrNetwork is the network of CNI of "ctr run --cni".
var ctrNetwork = cniNetwork{"ctr", "cni-ctr0", []string{"10.86.0.0/16", "fd10:86::/64"}}

// insideCNI runs a command whose /etc, /opt and /var/lib are as its first argument
// says: ctr reads the configuration of CNI in /etc/cni/net.d, runs the plugins of
// /opt/cni/bin and has libcni keep results in /var/lib/cni, and nothing tells it
// otherwise.
const insideCNI = `set -e
mount -t overlay -o "lowerdir=$1/etc:/etc" cni /etc
mount --bind "$1/etc/cni/net.d" /etc/cni/net.d
mount -t overlay -o "lowerdir=$1/opt:/opt" cni /opt
mount -t tmpfs cni /var/lib
shift
exec "$@"`

// CNIArgs is the command line of a ctr command with the option --cni.
func (c *Ctr) CNIArgs(args ...string) ([]string, error) {
	root := filepath.Join(c.engine.dir, "ctr-cni")
	conf, bin := filepath.Join(root, "etc", "cni", "net.d"), filepath.Join(root, "opt", "cni")
	if err := errors.Join(os.MkdirAll(conf, 0o755), os.MkdirAll(bin, 0o755)); err != nil {
		return nil, err
	}
	if err := os.Symlink(cniPlugins, filepath.Join(bin, "bin")); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := ctrNetwork.write(conf, filepath.Join(c.engine.dir, "ctr-addresses")); err != nil {
		return nil, err
	}
	shell := []string{"/usr/bin/unshare", "--mount", "--", "/bin/sh", "-c", insideCNI, "sh", root}
	return c.engine.Net.Args(append(shell, c.Args(args...)...)...), nil
}

// ExecArgs are the arguments of "ctr task exec".
func (c *Ctr) ExecArgs(options []string, name, execID string, command ...string) []string {
	args := append([]string{"task", "exec", "--exec-id", execID, "--fifo-dir", c.fifos()}, options...)
	return append(append(args, name), command...)
}

// Ctr runs a ctr command to its end.
func (c *Ctr) Ctr(ctx context.Context, stdin io.Reader, args ...string) (host.Result, error) {
	return host.Run(ctx, stdin, nil, c.Args(args...)...)
}

func (c *Ctr) fifos() string { return filepath.Join(c.engine.dir, "fifos") }

// ctrParent is the parent of the cgroups of ctr's containers.
func (e *Engine) ctrParent() string { return e.ground.Token + "-ctr" }

// removeTasks removes what tests of ctr left, which must work.
func (e *Engine) removeTasks(ctx context.Context) error {
	c := &Ctr{engine: e}
	r, err := c.Ctr(ctx, nil, "containers", "ls", "-q")
	if err := succeed(r, err); err != nil {
		return err
	}
	var errs []error
	for _, name := range strings.Fields(r.Stdout) {
		_, err := c.Ctr(ctx, nil, "task", "rm", "--force", name) // it may have no task
		errs = append(errs, err, succeed(c.Ctr(ctx, nil, "containers", "rm", name)))
	}
	return errors.Join(errs...)
}

// succeed makes an error of a command that ended with a code.
func succeed(r host.Result, err error) error {
	if err == nil && r.Code != 0 {
		err = errors.New(r.Stderr)
	}
	return err
}
