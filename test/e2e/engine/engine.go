// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package engine gives end-to-end tests engines of their own, which know the
// runtimes under test: a containerd with its ctr, a dockerd upon it, and a podman.
// Each has a network namespace of its own for its bridges and its rules of the
// firewall.
//
// It may import test/e2e/host and nothing of the product. The invariant: nothing
// of an engine that the machine may already have is used or changed, and the
// machine's network is not touched.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/test/e2e/host"
)

// The Debian packages' own programs, by path: another client may come first in
// PATH.
const (
	containerdPath = "/usr/bin/containerd"
	dockerdPath    = "/usr/sbin/dockerd"
	dockerPath     = "/usr/bin/docker"
)

// Image is the one image of the engine: busybox and a few users.
const Image = "busybox:e2e"

// Runtime is an entry of daemon.json.
type Runtime struct {
	Path string   `json:"path"`
	Args []string `json:"runtimeArgs,omitempty"`

	Default bool `json:"-"` // Docker uses it for containers that name none
}

// Engine is a running dockerd.
type Engine struct {
	Net *host.Netns // in which both daemons run

	dir        string
	ground     *host.Ground
	containerd *host.Process
	dockerd    *host.Process
}

const (
	startTime = 60 * time.Second
	stopTime  = 60 * time.Second
)

// containerdConfig leaves out what dockerd does not need and what probes the
// machine.
const containerdConfig = `version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt",
]
[grpc]
  address = %q
`

// Start starts the two daemons and imports the image.
func Start(ctx context.Context, g *host.Ground, runtimes map[string]Runtime) (_ *Engine, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	e := &Engine{dir: filepath.Join(g.Dir, "engine"), ground: g}
	if err := os.MkdirAll(filepath.Join(e.dir, "client"), 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Stop())
		}
	}()
	if e.Net, err = host.NewNetns(); err != nil {
		return nil, err
	}
	address := e.containerdAddress()
	config := filepath.Join(e.dir, "containerd.toml")
	text := fmt.Sprintf(containerdConfig, filepath.Join(g.Data, "containerd"), filepath.Join(e.dir, "containerd"), address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	e.containerd, err = host.StartProcess(ctx, e.dir, "containerd", nil, e.Net.Args(containerdPath, "--config", config)...)
	if err != nil {
		return nil, fmt.Errorf("is the Debian package containerd installed? %w", err)
	}
	settings := map[string]any{"runtimes": runtimes}
	for name, r := range runtimes {
		if r.Default {
			settings["default-runtime"] = name
		}
	}
	daemonJSON, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(e.dir, "daemon.json"), daemonJSON, 0o600); err != nil {
		return nil, err
	}
	if err := e.startDockerd(ctx); err != nil {
		return nil, err
	}
	return e, e.importImage(ctx)
}

// startDockerd starts dockerd. With live-restore, containers outlive it.
func (e *Engine) startDockerd(ctx context.Context) error {
	var err error
	e.dockerd, err = host.StartProcess(ctx, e.dir, "dockerd", nil, e.Net.Args(dockerdPath,
		"--config-file", filepath.Join(e.dir, "daemon.json"),
		"-H", e.address(), "--containerd", e.containerdAddress(),
		"--data-root", filepath.Join(e.ground.Data, "docker"), "--exec-root", filepath.Join(e.dir, "exec"), "--pidfile", filepath.Join(e.dir, "dockerd.pid"),
		"--storage-driver=overlay2", "--cgroup-parent=/"+e.ground.Token, "--live-restore")...)
	if err != nil {
		return fmt.Errorf("is the Debian package docker.io installed? %w", err)
	}
	return nil
}

// WithoutDockerd ends dockerd, by SIGKILL or as systemd would, does something
// and starts it again.
func (e *Engine) WithoutDockerd(ctx context.Context, kill bool, do func() error) error {
	end := e.dockerd.Stop
	if kill {
		end = e.dockerd.Kill
	}
	err := errors.Join(end(), do())
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	return errors.Join(err, e.startDockerd(ctx))
}

func (e *Engine) importImage(ctx context.Context) error {
	archive, into := io.Pipe()
	go func() { into.CloseWithError(host.RootfsTar(into)) }() // ends when the reader has closed
	defer archive.Close()
	r, err := host.Run(ctx, archive, e.Env(), dockerPath, "import", "--change", "ENV PATH=/bin", "--change", `CMD ["sh"]`, "-", Image)
	if err == nil && r.Code != 0 {
		err = errors.New(r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("import the image: %w", err)
	}
	return nil
}

// Address is where dockerd listens, as DOCKER_HOST has it.
func (e *Engine) Address() string { return e.address() }

func (e *Engine) address() string { return "unix://" + filepath.Join(e.dir, "docker.sock") }

func (e *Engine) containerdAddress() string { return filepath.Join(e.dir, "containerd.sock") }

// Env is the environment in which a Docker client meets this engine.
func (e *Engine) Env() []string {
	return []string{"DOCKER_HOST=" + e.address(), "DOCKER_CONFIG=" + filepath.Join(e.dir, "client")}
}

// Args is the command line of a Docker command.
func (e *Engine) Args(args ...string) []string { return append([]string{dockerPath}, args...) }

// Docker runs a Docker command to its end.
func (e *Engine) Docker(ctx context.Context, stdin io.Reader, args ...string) (host.Result, error) {
	return host.Run(ctx, stdin, e.Env(), e.Args(args...)...)
}

// Logs are the files that tell why something failed.
func (e *Engine) Logs() []string { return []string{e.dockerd.Log, e.containerd.Log} }

// Stop removes the containers, which must work, and ends the daemons.
func (e *Engine) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	var errs []error
	if e.dockerd != nil {
		errs = append(errs, e.removeAll(ctx), e.dockerd.Stop())
	}
	if e.containerd != nil {
		errs = append(errs, e.removeTasks(ctx), e.containerd.Stop())
	}
	errs = append(errs, e.releaseMounts(), removeCgroups(e.ground.Token), removeCgroups(e.ctrParent()))
	if e.Net != nil {
		errs = append(errs, linksLeft(e.Net), e.Net.Close())
	}
	return errors.Join(errs...)
}

// releaseMounts removes what dockerd mounts for itself: its handle of the host's
// network namespace, which it makes for a container of "--network host", also for
// one that a runtime refuses, and its data directory; it does not always take
// them away when it ends. Mounts of containers are left to be found.
func (e *Engine) releaseMounts() error {
	var errs []error
	for _, path := range []string{filepath.Join(e.dir, "exec", "netns", "default"), filepath.Join(e.ground.Data, "docker")} {
		errs = append(errs, host.Unmount(path))
	}
	return errors.Join(errs...)
}

func (e *Engine) removeAll(ctx context.Context) error {
	r, err := e.Docker(ctx, nil, "ps", "-aq")
	if err != nil {
		return err
	}
	ids := strings.Fields(r.Stdout)
	if len(ids) == 0 {
		return nil
	}
	r, err = e.Docker(ctx, nil, append([]string{"rm", "-f"}, ids...)...)
	if err == nil && r.Code != 0 {
		err = errors.New(r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("remove the containers that tests left: %w", err)
	}
	return nil
}

// bridges are what engines call those of their networks, which they keep.
var bridges = []string{"docker0", "br-", "cni"}

// linksLeft complains of what containers left in the namespace of an engine: the
// engine's end of a veth goes with the container's.
func linksLeft(n *host.Netns) error {
	links, err := n.Links()
	if err != nil {
		return err
	}
	links = slices.DeleteFunc(links, func(link string) bool {
		return link == "lo" || slices.ContainsFunc(bridges, func(prefix string) bool { return strings.HasPrefix(link, prefix) })
	})
	if len(links) > 0 {
		return fmt.Errorf("containers left the interfaces %s beside the engine", strings.Join(links, ", "))
	}
	return nil
}

// removeCgroups removes the parent of the containers' cgroups, which engines
// leave to whoever named it. Children are the runtime's to remove.
func removeCgroups(parent string) error {
	parents, err := filepath.Glob(cgroupMount + "/*/" + parent)
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range append(parents, filepath.Join(cgroupMount, parent)) {
		remove := os.Remove
		if !isCgroup(path) {
			// podman takes any directory there for a hierarchy, also one that is none.
			remove = os.RemoveAll
		}
		if err := remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// cgroupMount is where the hierarchies of cgroup v1, or the one of v2, are.
const cgroupMount = "/sys/fs/cgroup"

func isCgroup(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && (fs.Type == unix.CGROUP_SUPER_MAGIC || fs.Type == unix.CGROUP2_SUPER_MAGIC)
}
