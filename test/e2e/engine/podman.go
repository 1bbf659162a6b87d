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
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bulkhead/test/e2e/host"
)

const podmanPath = "/usr/bin/podman"

// PodmanImage is the one image of Podman, by its full name: short ones are looked
// up in files of the machine.
const PodmanImage = "localhost/" + Image

// Podman is podman and conmon with storage, state, configuration and a network
// namespace of their own. There is no daemon.
type Podman struct {
	Net *host.Netns // in which every command runs

	dir, data string
	runtime   string
	ground    *host.Ground
}

// containersConf leaves the machine's defaults out: locks in /dev/shm, the
// journal, and limits that a container of tests may not be allowed to raise.
// static_dir is where podman's cleanup, which conmon starts with --root, looks.
// What a user adds for a runtime goes on with the table [engine].
const containersConf = `[containers]
netns = "none"
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["` + cniPlugins + `"]
network_config_dir = %[1]q
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
conmon_path = ["/usr/bin/conmon"]
tmp_dir = %[2]q
static_dir = %[3]q
volume_path = %[4]q
runtime = %[5]q
%[6]s
`

// engineTable begins what a user adds for a runtime.
const engineTable = "[engine]\n"

// PodmanSetUp is what a user adds to containers.conf for a runtime.
func PodmanSetUp(name, path string) string {
	return fmt.Sprintf("%sruntime_supports_json = [%q]\n[engine.runtimes]\n%s = [%q]\n", engineTable, name, name, path)
}

const storageConf = `[storage]
driver = "overlay"
runroot = %q
graphroot = %q
`

// NewPodman makes the configuration, of a set-up that names a runtime by its
// path, with that as the default one, and imports the image.
func NewPodman(ctx context.Context, g *host.Ground, name string, r Runtime, setUp string) (_ *Podman, err error) {
	p := &Podman{dir: filepath.Join(g.Dir, "podman"), data: filepath.Join(g.Data, "podman"), ground: g}
	for _, dir := range []string{p.dir, p.data} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Stop())
		}
	}()
	if err := shareMounts(p.data); err != nil {
		return nil, err
	}
	if p.Net, err = host.NewNetns(); err != nil {
		return nil, err
	}
	p.runtime = filepath.Join(p.dir, name)
	_, setUp, found := strings.Cut(setUp, engineTable)
	if !found || !strings.Contains(setUp, strconv.Quote(r.Path)) {
		return nil, fmt.Errorf("the set-up of podman has no table [engine] or does not name %s", r.Path)
	}
	setUp = strings.ReplaceAll(setUp, strconv.Quote(r.Path), strconv.Quote(p.runtime))
	conf := fmt.Sprintf(containersConf, filepath.Join(p.dir, "networks"), filepath.Join(p.dir, "libpod"),
		filepath.Join(p.storage(), "libpod"), filepath.Join(p.storage(), "volumes"), name, setUp)
	storage := fmt.Sprintf(storageConf, filepath.Join(p.dir, "run"), p.storage())
	if err := errors.Join(
		writeWrapper(p.runtime, r),
		os.WriteFile(p.conf(), []byte(conf), 0o600),
		os.WriteFile(p.storageConf(), []byte(storage), 0o600),
		p.writeNetworks(),
	); err != nil {
		return nil, err
	}
	archive, into := io.Pipe()
	go func() { into.CloseWithError(host.RootfsTar(into)) }() // ends when the reader has closed
	defer archive.Close()
	err = succeed(p.Podman(ctx, archive, "import", "--quiet", "--change", "ENV PATH=/bin", "--change", `CMD ["sh"]`, "-", PodmanImage))
	if err != nil {
		return nil, fmt.Errorf("is the Debian package podman installed? %w", err)
	}
	return p, nil
}

func (p *Podman) conf() string        { return filepath.Join(p.dir, "containers.conf") }
func (p *Podman) storage() string     { return filepath.Join(p.data, "storage") }
func (p *Podman) storageConf() string { return filepath.Join(p.dir, "storage.conf") }

// Env is the environment in which podman keeps to its own.
func (p *Podman) Env() []string {
	return []string{"CONTAINERS_CONF=" + p.conf(), "CONTAINERS_STORAGE_CONF=" + p.storageConf(), "XDG_RUNTIME_DIR="}
}

// Args is the command line of a podman command, in a directory of its own:
// conmon writes of an OOM kill where it was started.
func (p *Podman) Args(args ...string) []string {
	return p.Net.Args(append([]string{"/usr/bin/env", "--chdir=" + p.dir, podmanPath}, args...)...)
}

// Runtime is the program that podman runs as the runtime.
func (p *Podman) Runtime() string { return p.runtime }

// CgroupParent is to be given to "run", "create" and "pod create" with
// --cgroup-parent.
func (p *Podman) CgroupParent() string { return "/" + p.parent() }

func (p *Podman) parent() string { return p.ground.Token + "-podman" }

// Podman runs a podman command to its end.
func (p *Podman) Podman(ctx context.Context, stdin io.Reader, args ...string) (host.Result, error) {
	return host.Run(ctx, stdin, p.Env(), p.Args(args...)...)
}

// Stop removes the containers and pods, which must work, and what podman leaves
// of its storage.
func (p *Podman) Stop() error {
	if p.Net == nil {
		return host.Unmount(p.data)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	errs := []error{
		succeed(p.Podman(ctx, nil, "pod", "rm", "--all", "--force", "--time", "0")),
		succeed(p.Podman(ctx, nil, "rm", "--all", "--force", "--time", "0")),
	}
	// The overlay driver binds its directory to itself and leaves that.
	errs = append(errs, host.Unmount(filepath.Join(p.storage(), "overlay")), host.Unmount(p.data), linksLeft(p.Net), p.Net.Close())
	return errors.Join(append(errs, removeCgroups(p.parent()+"/conmon"), removeCgroups(p.parent()))...)
}

// shareMounts makes a directory a shared mount, as all of a host is under systemd.
// Podman counts on it: it runs a container with mappings of ids from a mount
// namespace of its own, in which conmon's cleanup then unmounts /dev/shm. Where that
// does not reach the host's namespace, "rm" finds its directory busy.
func shareMounts(dir string) error {
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to itself: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return errors.Join(fmt.Errorf("share the mounts beneath %s: %w", dir, err), host.Unmount(dir))
	}
	return nil
}

// RemovePodCgroup removes what podman leaves of a pod's cgroup: it removes it from the
// hierarchies in which it sets limits alone, whatever the runtime.
func (p *Podman) RemovePodCgroup(id string) error { return removeCgroups(p.parent() + "/" + id) }
