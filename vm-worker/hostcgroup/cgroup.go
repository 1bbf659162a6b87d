// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostcgroup makes the host-side cgroup of a container, the one its
// bundle names: the VM's process and the relays live there, so that what an
// engine reads from it (usage, limits, OOM) is true of the container.
//
// It imports nothing of ours. The invariant to remember: the limits here are
// the container's plus the overhead of the VM around it, so that a container
// meets its own limit in the guest, and only the guest's kernel kills in it; and
// only directories made by Create are removed by Destroy.
package hostcgroup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Overhead is what the VM needs beside the container.
type Overhead struct {
	MemoryBytes int64
	Pids        int64 // threads of the hypervisor, and the relays
}

// DefaultOverhead suits one QEMU under TCG with its relays. The guest's kernel
// holds the container to its pids; here the threads of QEMU (up to 64 serve the
// share) and those of the relays, some eight each, must always find room: a
// QEMU that cannot make a thread ends.
var DefaultOverhead = Overhead{MemoryBytes: 192 << 20, Pids: 1024}

// Options are what Create needs to know beside the bundle.
type Options struct {
	// Systemd says that cgroupsPath is slice:prefix:name and that systemd makes
	// the scope, as with runc's --systemd-cgroup.
	Systemd bool
	// PID is the first process of a systemd scope, which cannot be empty: the
	// relay. Without Systemd it may be 0, and Enter brings processes later.
	PID int
	// End ends the process PID, which may stand in what a failed Create has to remove.
	End      func(context.Context) error
	Overhead Overhead
	// StateFile is where the cgroup is described before it is made, for Load.
	StateFile string
}

// Cgroup is the host cgroup of one container. The zero number of paths is
// valid: a host whose cgroup file system cannot be written, and a bundle that
// asks for no limit.
type Cgroup struct {
	limits  sync.Mutex // held while limits are set, or lowered for a moment by SignalOOM; a leaf
	state   state
	manager cgroups.Manager // nil when disabled
}

// state is what StateFile holds.
type state struct {
	Config   *cgroups.Cgroup   `json:"config"`
	Paths    map[string]string `json:"paths"` // by controller; "" on cgroup v2
	Made     []string          `json:"made"`  // directories that Create makes
	Quota    quota             `json:"quota"`
	Disabled bool              `json:"disabled,omitempty"`
}

// Create makes the cgroup that spec names, or /bulkhead/<key> when it names
// none, and applies its limits but for the CPU quota. Device rules are not
// among them: they are the guest's business. On an error everything made is
// removed again.
func Create(spec *specs.Spec, key string, opts Options) (*Cgroup, error) {
	config, limited, err := configOf(spec, key, opts)
	if err != nil {
		return nil, err
	}
	c := &Cgroup{state: state{Config: config}}
	if spec.Linux != nil {
		c.state.Quota = quotaOf(spec.Linux.Resources)
	}
	c.manager, err = manager.New(config)
	if err != nil {
		return nil, fmt.Errorf("preparing the cgroup of container %s: %w", key, err)
	}
	c.state.Paths = maps.Clone(c.manager.GetPaths())
	for _, p := range c.state.Paths {
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) && !slices.Contains(c.state.Made, p) {
			c.state.Made = append(c.state.Made, p)
		}
	}
	return c.make(key, limited, opts)
}

// Inherit makes a cgroup beside that of a container which is about to go, with
// the same limits, for what outlives it: name is nobody else's, and pid moves into
// it. It may be repeated after a failure. Without a cgroup to leave it is nil.
func (c *Cgroup) Inherit(name string, pid int, stateFile string) (*Cgroup, error) {
	if c.manager == nil {
		return nil, nil
	}
	if heir, err := Load(stateFile); err == nil && heir.Holds(pid) { // systemd makes no scope twice
		return heir, heir.ApplyQuota()
	}
	config := *c.state.Config
	if config.Systemd {
		config.ScopePrefix, config.Name = "bulkhead", name
	} else {
		config.Path = path.Join(path.Dir(config.Path), "bulkhead-"+name)
	}
	heir := &Cgroup{state: state{Config: &config, Quota: c.state.Quota}}
	var err error
	heir.manager, err = manager.New(&config)
	if err != nil {
		return nil, fmt.Errorf("preparing the cgroup of %s: %w", name, err)
	}
	heir.state.Paths = maps.Clone(heir.manager.GetPaths())
	heir.state.Made = slices.Compact(slices.Sorted(maps.Values(heir.state.Paths)))
	if heir, err = heir.make(name, true, Options{PID: pid, StateFile: stateFile}); err != nil {
		return nil, err
	}
	return heir, errors.Join(heir.EnterMachine(pid, c), heir.ApplyQuota())
}

// make makes the cgroup that its state describes.
func (c *Cgroup) make(key string, limited bool, opts Options) (*Cgroup, error) {
	if err := c.save(opts.StateFile); err != nil {
		return nil, err
	}
	pid := -1
	if opts.PID > 0 {
		pid = opts.PID
	}
	if err := c.apply(pid); err != nil {
		if !limited && notWritable(err) {
			c.disable()
			return c, c.save(opts.StateFile)
		}
		return nil, errors.Join(fmt.Errorf("making the cgroup of container %s: %w", key, err), c.undo(opts))
	}
	// The manager names a path for every controller, also for those it left alone
	// (devices): a process cannot enter what was not made.
	maps.DeleteFunc(c.state.Paths, func(_, p string) bool {
		_, err := os.Lstat(p)
		return errors.Is(err, fs.ErrNotExist)
	})
	if err := c.save(opts.StateFile); err != nil {
		return nil, errors.Join(err, c.undo(opts))
	}
	if err := c.manager.Set(c.state.Config.Resources); err != nil {
		return nil, errors.Join(fmt.Errorf("setting the limits of container %s: %w", key, plain(err)), c.undo(opts))
	}
	return c, nil
}

// plain names the limit that this host's kernel lacks. The kernel's own words for
// a missing file are those by which engines know a missing program.
func plain(err error) error {
	var missing *fs.PathError
	if errors.As(err, &missing) && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("this host's kernel does not offer %s: do without that limit", path.Base(missing.Path))
	}
	return err
}

// ownParents is held while a cgroup is made and while the empty parents of
// another are removed: a parent must not vanish between its making and its
// child's.
var ownParents sync.Mutex

// applyTries is how often a cgroup is made whose parent another process of ours
// removed under our hands.
const applyTries = 5

// apply makes the cgroup, and moves pid into it unless that is -1.
func (c *Cgroup) apply(pid int) (err error) {
	ownParents.Lock()
	defer ownParents.Unlock()
	for range applyTries {
		if err = c.manager.Apply(pid); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// Load describes the cgroup whose Create wrote stateFile, also one that was
// interrupted. The error is fs.ErrNotExist when there was none.
func Load(stateFile string) (*Cgroup, error) {
	text, err := os.ReadFile(stateFile)
	if err != nil {
		return nil, fmt.Errorf("reading the state of a cgroup: %w", err)
	}
	c := &Cgroup{}
	if err := json.Unmarshal(text, &c.state); err != nil {
		return nil, fmt.Errorf("reading the state of a cgroup in %s: %w", stateFile, err)
	}
	if c.state.Config == nil {
		return nil, fmt.Errorf("the state of a cgroup in %s is not complete", stateFile)
	}
	if c.state.Config.Resources == nil {
		c.state.Config.Resources = &cgroups.Resources{SkipDevices: true}
	}
	if c.state.Disabled {
		return c, nil
	}
	c.manager, err = manager.NewWithPaths(c.state.Config, maps.Clone(c.state.Paths))
	if err != nil {
		return nil, fmt.Errorf("taking up the cgroup described in %s: %w", stateFile, err)
	}
	return c, nil
}

// Disabled tells that the container has no cgroup of its own.
func (c *Cgroup) Disabled() bool { return c.state.Disabled }

// ProcsPaths lists the cgroup.procs files a process writes itself into to
// enter. A file is listed once also where controllers share a hierarchy.
func (c *Cgroup) ProcsPaths() []string {
	var files []string
	for _, p := range c.state.Paths {
		files = append(files, filepath.Join(p, "cgroup.procs"))
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// Enter moves the process into the cgroup.
func (c *Cgroup) Enter(pid int) error {
	if c.manager == nil {
		return nil
	}
	for _, file := range c.ProcsPaths() {
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("moving process %d into the cgroup of its container: %w", pid, err)
		}
	}
	return nil
}

// Holds tells whether the process is in the cgroup, in every hierarchy.
func (c *Cgroup) Holds(pid int) bool {
	files := c.ProcsPaths()
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !slices.Contains(strings.Fields(string(text)), strconv.Itoa(pid)) {
			return false
		}
	}
	return len(files) > 0
}

// Stats reads the accounting of the cgroup.
func (c *Cgroup) Stats() (*cgroups.Stats, error) {
	if c.manager == nil {
		return cgroups.NewStats(), nil
	}
	stats, err := c.manager.GetStats()
	if err != nil {
		return nil, fmt.Errorf("reading the statistics of a cgroup: %w", err)
	}
	return stats, nil
}

// Update applies other limits, the CPU quota among them, and writes them to
// stateFile. Like Create it leaves what is zero as it is; -1 is no limit. When it
// fails, some of the limits may have been set: apply the former ones again.
func (c *Cgroup) Update(r *specs.LinuxResources, over Overhead, stateFile string) error {
	resources, limited, err := resourcesOf(r, over)
	if err != nil {
		return err
	}
	if c.manager == nil {
		if limited {
			return errors.New("this container has no cgroup on the host, whose cgroup file system cannot be written: its limits cannot be changed")
		}
		return nil
	}
	c.limits.Lock()
	defer c.limits.Unlock()
	config := *c.state.Config
	config.Resources = resources
	next := state{Config: &config, Quota: quotaOf(r)}
	if err := c.manager.Set(next.withQuota()); err != nil {
		return fmt.Errorf("changing the limits of a container on the host: %w", plain(err))
	}
	c.state.Config, c.state.Quota = next.Config, next.Quota
	return c.save(stateFile)
}

// Resize moves the limits of memory and of CPU time, where there are any, and writes
// them to stateFile: to so many bytes, and to so many thousandths of a CPU, of which 0
// is all. What may be swapped stays what it was.
func (c *Cgroup) Resize(bytes int64, millicpus uint64, stateFile string) error {
	if c.manager == nil {
		return nil
	}
	c.limits.Lock()
	defer c.limits.Unlock()
	config, limits, quota := *c.state.Config, *c.state.Config.Resources, c.state.Quota
	if limits.Memory > 0 {
		if limits.MemorySwap > 0 {
			limits.MemorySwap += bytes - limits.Memory
		}
		limits.Memory = bytes
	}
	if quota.Quota != 0 {
		quota.Quota = -1
		if millicpus > 0 {
			period := quota.Period
			if period == 0 {
				period = DefaultPeriod
			}
			quota.Quota = int64(millicpus * period / 1000)
		}
	}
	config.Resources = &limits
	resized := state{Config: &config, Quota: quota}
	if err := c.manager.Set(resized.withQuota()); err != nil {
		return fmt.Errorf("changing the limits of a VM on the host: %w", plain(err))
	}
	c.state.Config, c.state.Quota = resized.Config, resized.Quota
	return c.save(stateFile)
}

// Destroy removes the directories that Create made. The processes in them have
// ended or are ending: their last moments are waited for until ctx ends, at
// most 5 s. Destroying twice is no error.
func (c *Cgroup) Destroy(ctx context.Context) error {
	if c.manager == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if c.state.Config.Systemd && len(c.state.Made) > 0 {
		if err := c.manager.Destroy(); err != nil {
			return fmt.Errorf("stopping the scope of a container: %w", err)
		}
		return nil
	}
	if err := removeDirs(ctx, c.state.Made); err != nil {
		return c.why(err)
	}
	c.removeParents()
	return nil
}

// removeParents removes what nobody uses any more of the parents that only we
// make: the default one and those below it.
func (c *Cgroup) removeParents() {
	ownParents.Lock()
	defer ownParents.Unlock()
	for _, dir := range c.state.Made {
		at, name := filepath.Dir(dir), path.Dir(c.state.Config.Path)
		for strings.HasPrefix(name+"/", defaultParent+"/") && filepath.Base(at) == path.Base(name) {
			// The kernel refuses while it has children or processes.
			if err := unix.Rmdir(at); err != nil && !errors.Is(err, unix.ENOENT) {
				break
			}
			at, name = filepath.Dir(at), path.Dir(name)
		}
	}
}

// removeDirs removes cgroups and those beneath them. A cgroup whose last task is
// being reaped refuses with EBUSY, and v1 has no event for its end: so it is
// tried again until ctx ends.
func removeDirs(ctx context.Context, dirs []string) error {
	for {
		var busy error
		for _, dir := range dirs {
			err := removeTree(dir)
			if errors.Is(err, unix.EBUSY) {
				busy = fmt.Errorf("removing cgroup %s, which still has processes: %w", dir, err)
			} else if err != nil {
				return fmt.Errorf("removing cgroup %s: %w", dir, err)
			}
		}
		if busy == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return busy
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// removeTree removes a cgroup after its children. An absent one is no error; it
// is looked for by name, as a read-only cgroup file system answers EROFS to both.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, readErr := os.ReadDir(dir)
	if errors.Is(readErr, fs.ErrNotExist) {
		return nil
	}
	children := 0
	for _, e := range entries {
		if e.IsDir() {
			children++
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if children > 0 {
		err = unix.Rmdir(dir)
	}
	return err
}

func (c *Cgroup) undo(opts Options) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if opts.End != nil { // a cgroup with a process in it cannot be removed
		if err := opts.End(ctx); err != nil {
			return err
		}
	}
	return c.Destroy(ctx)
}

// disable forgets the paths after removing what was made of them.
func (c *Cgroup) disable() {
	for _, dir := range c.state.Made {
		_ = removeTree(dir)
	}
	c.manager = nil
	c.state.Disabled, c.state.Paths, c.state.Made = true, nil, nil
}

func (c *Cgroup) save(file string) error {
	if file == "" {
		return nil
	}
	text, err := json.Marshal(c.state)
	if err != nil {
		return fmt.Errorf("encoding the state of a cgroup: %w", err)
	}
	tmp := file + ".tmp"
	if err := os.WriteFile(tmp, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the state of a cgroup: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("writing the state of a cgroup: %w", err)
	}
	return nil
}

func notWritable(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS)
}
