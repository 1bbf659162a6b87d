// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/test/conformance"
	"bulkhead/test/e2e/host"
)

// cleanTime bounds the deletion of a group's containers, whatever became of its
// own time.
const cleanTime = time.Minute

// oci calls the command line of a runtime for one group, as conmon and
// containerd's shim do.
type oci struct {
	stage *conformance.Stage
	root  string // --root
	made  int    // containers and bundles
	ids   []string
}

func newOCI(s *conformance.Stage) *oci { return &oci{stage: s, root: filepath.Join(s.Dir, "root")} }

// close deletes what the group made.
func (o *oci) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanTime)
	defer cancel()
	var errs []error
	for _, id := range o.ids {
		if r, err := o.cli(ctx, "delete", "--force", id); err != nil || r.Code != 0 {
			errs = append(errs, err, fmt.Errorf("delete --force %s ended with %d: %s", id, r.Code, r.Stderr))
		}
	}
	return errors.Join(errs...)
}

func (o *oci) args(args ...string) []string {
	return o.stage.Runtime.Args(append([]string{"--root", o.root}, args...)...)
}

// cli runs a command, whatever its code.
func (o *oci) cli(ctx context.Context, args ...string) (host.Result, error) {
	return host.Run(ctx, nil, nil, o.args(args...)...)
}

// do runs a command that must succeed.
func (o *oci) do(ctx context.Context, args ...string) (string, error) {
	r, err := o.cli(ctx, args...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s ended with %d: %s", strings.Join(args, " "), r.Code, strings.TrimSpace(r.Stderr))
	}
	return r.Stdout, err
}

// fails runs a command that must not succeed, and must say why.
func (o *oci) fails(ctx context.Context, args ...string) error {
	r, err := o.cli(ctx, args...)
	switch {
	case err != nil:
		return err
	case r.Code == 0:
		return fmt.Errorf("%s succeeded", strings.Join(args, " "))
	case strings.TrimSpace(r.Stderr) == "":
		return fmt.Errorf("%s failed without a word", strings.Join(args, " "))
	}
	return nil
}

// bundle makes a bundle with the probe in its root file system.
func (o *oci) bundle(spec *specs.Spec) (string, error) {
	o.made++
	dir := filepath.Join(o.stage.Data, "b"+strconv.Itoa(o.made))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := host.Bundle(dir, spec); err != nil {
		return "", err
	}
	return dir, os.Link(o.stage.Session.(session).probe, filepath.Join(dir, "rootfs", "bin", "probe"))
}

// newID is an id that nobody has.
func (o *oci) newID() string {
	o.made++
	id := o.stage.Ground.Token + "-" + filepath.Base(o.stage.Dir) + "-" + strconv.Itoa(o.made)
	o.ids = append(o.ids, id)
	return id
}

// container is a created one.
type container struct {
	*host.Monitored
	o      *oci
	id     string
	bundle string
}

// try runs create, whatever its code.
func (o *oci) try(ctx context.Context, bundle string, flags ...string) (*container, error) {
	id := o.newID()
	pidFile := filepath.Join(o.stage.Dir, id+".pid")
	args := append([]string{"create", "--bundle", bundle, "--pid-file", pidFile}, flags...)
	m, err := host.Monitor(ctx, pidFile, o.args(append(args, id)...)...)
	if err != nil {
		return nil, err
	}
	if err := m.Stdin.Close(); err != nil {
		return nil, err
	}
	return &container{m, o, id, bundle}, nil
}

// create creates a container of a bundle.
func (o *oci) create(ctx context.Context, bundle string, flags ...string) (*container, error) {
	c, err := o.try(ctx, bundle, flags...)
	if err == nil && c.Code != 0 {
		return nil, fmt.Errorf("create ended with %d: %s", c.Code, strings.TrimSpace(c.Stderr.String()))
	}
	return c, err
}

// launch creates a container of a configuration and starts it.
func (o *oci) launch(ctx context.Context, spec *specs.Spec) (*container, error) {
	bundle, err := o.bundle(spec)
	if err != nil {
		return nil, err
	}
	c, err := o.create(ctx, bundle)
	if err == nil {
		err = c.start(ctx)
	}
	return c, err
}

func (c *container) start(ctx context.Context) error {
	_, err := c.o.do(ctx, "start", c.id)
	return err
}

// finish waits for the end of the process, which must be 0, and of its output.
func (c *container) finish(ctx context.Context) error {
	code, err := c.Wait(ctx)
	if err != nil {
		return err
	}
	select {
	case <-c.Closed:
	case <-ctx.Done():
		return ctx.Err()
	}
	if code != 0 {
		return fmt.Errorf("the process ended with %d: %s", code, strings.TrimSpace(c.Stderr.String()))
	}
	return nil
}

// state is what the runtime says of a container.
func (c *container) state(ctx context.Context) (specs.State, error) {
	var state specs.State
	text, err := c.o.do(ctx, "state", c.id)
	if err == nil {
		err = json.Unmarshal([]byte(text), &state)
	}
	return state, err
}
