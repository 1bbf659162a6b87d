// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"bulkhead/test/e2e/host"
)

// CRI is a containerd that serves Kubernetes' runtime interface, with crictl as
// its client. Its pods are in a network of CNI.
type CRI struct {
	Net *host.Netns // in which the daemon runs

	dir        string
	ground     *host.Ground
	crictl     string
	containerd *host.Process
}

const (
	// Handler is the name of the runtime in containerd's configuration.
	Handler = "tested"
	// pauseImage has busybox as the program that holds a pod.
	pauseImage = "docker.io/library/pause:e2e"
)

// criConfig is: root, state, socket, the pause image, directory of CNI plugins,
// of their configuration, the runtime's name twice, its program, its root.
const criConfig = `version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt",
]
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  stream_server_address = "127.0.0.1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = %q
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%s]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%[8]s.options]
        BinaryName = %q
        Root = %q
`

const clientConfig = "runtime-endpoint: unix://%[1]s\nimage-endpoint: unix://%[1]s\ntimeout: 60\n"

// StartCRI starts containerd and gives it the images.
func StartCRI(ctx context.Context, g *host.Ground, r Runtime, crictl string) (_ *CRI, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	c := &CRI{dir: filepath.Join(g.Dir, "cri"), ground: g, crictl: crictl}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if c.Net, err = host.NewNetns(); err != nil {
		return nil, err
	}
	conf, data := filepath.Join(c.dir, "net.d"), filepath.Join(g.Data, "cri")
	for _, dir := range []string{c.dir, c.LogDir(), conf, data} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	wrapper, config := filepath.Join(c.dir, "runtime-of-cri"), filepath.Join(c.dir, "containerd.toml")
	text := fmt.Sprintf(criConfig, data, filepath.Join(c.dir, "state"), c.address(), pauseImage, cniPlugins, conf,
		Handler, Handler, wrapper, filepath.Join(c.dir, "runtime"))
	if err := errors.Join(
		writeWrapper(wrapper, r),
		os.WriteFile(config, []byte(text), 0o600),
		os.WriteFile(c.clientConfig(), []byte(fmt.Sprintf(clientConfig, c.address())), 0o600),
		cniNetwork{"pods", "cni0", []string{"10.85.0.0/16", "fd10:85::/64"}}.write(conf, filepath.Join(c.dir, "addresses")),
	); err != nil {
		return nil, err
	}
	c.containerd, err = host.StartProcess(ctx, c.dir, "containerd", nil, c.Net.Args(containerdPath, "--config", config)...)
	if err != nil {
		return nil, fmt.Errorf("is the Debian package containerd installed? %w", err)
	}
	archive, into := io.Pipe()
	go func() { into.CloseWithError(imageArchive(into)) }() // ends when the reader has closed
	defer archive.Close()
	if err := succeed(host.Run(ctx, archive, nil, c.ctr("images", "import", "-")...)); err != nil {
		return nil, fmt.Errorf("give the images to containerd: %w", err)
	}
	return c, nil
}

func (c *CRI) address() string { return filepath.Join(c.dir, "containerd.sock") }

func (c *CRI) ctr(args ...string) []string {
	return append([]string{ctrPath, "--address", c.address(), "--namespace", "k8s.io"}, args...)
}

// Args is the command line of a crictl command, beside containerd's server of
// streams.
func (c *CRI) Args(args ...string) []string {
	return c.Net.Args(append([]string{c.crictl, "--config", c.clientConfig()}, args...)...)
}

func (c *CRI) clientConfig() string { return filepath.Join(c.dir, "crictl.yaml") }

// LogDir is where the logs of containers belong.
func (c *CRI) LogDir() string { return filepath.Join(c.dir, "logs") }

// CgroupParent is the pods' cgroup.
func (c *CRI) CgroupParent() string { return "/" + c.parent() }

func (c *CRI) parent() string { return c.ground.Token + "-cri" }

// Stop removes the pods, which must work, and ends the daemon.
func (c *CRI) Stop() error {
	if c.containerd == nil {
		if c.Net != nil {
			return c.Net.Close()
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	var errs []error
	r, err := host.Run(ctx, nil, nil, c.Args("pods", "-q")...)
	errs = append(errs, succeed(r, err))
	for _, id := range strings.Fields(r.Stdout) {
		errs = append(errs, succeed(host.Run(ctx, nil, nil, c.Args("rmp", "-f", id)...)))
	}
	return errors.Join(append(errs, c.containerd.Stop(), removeCgroups(c.parent()), linksLeft(c.Net), c.Net.Close())...)
}

// imageArchive writes, in Docker's format, the image of the tests and that of a
// pod's own container: the same files, and another program.
func imageArchive(w io.Writer) error {
	var layer bytes.Buffer
	if err := host.RootfsTar(&layer); err != nil {
		return err
	}
	sum := sha256.Sum256(layer.Bytes())
	type object = map[string]any
	files := map[string][]byte{"layer.tar": layer.Bytes()}
	var manifest []object
	for name, program := range map[string][]string{CtrImage: {"sh"}, pauseImage: {"sleep", "1000000"}} {
		config, err := json.Marshal(object{
			"architecture": "amd64", "os": "linux",
			"config": object{"Env": []string{"PATH=/bin"}, "Cmd": program},
			"rootfs": object{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
		})
		if err != nil {
			return err
		}
		path := program[0] + ".json"
		files[path] = config
		manifest = append(manifest, object{"Config": path, "RepoTags": []string{name}, "Layers": []string{"layer.tar"}})
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	files["manifest.json"] = text
	archive := tar.NewWriter(w)
	for name, body := range files {
		err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = archive.Write(body)
		}
		if err != nil {
			return err
		}
	}
	return archive.Close()
}
