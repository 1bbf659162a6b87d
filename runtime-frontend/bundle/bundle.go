// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package bundle reads an OCI bundle and judges it whole before anything is
// created: what the runtime-spec defines is either carried out by the guest or
// refused here by name, in a sentence. It may import the runtime-spec and,
// of ours, the contracts of proto.
//
// The invariant: every property the runtime-spec's Go types know has exactly
// one verdict in the tables of this package, and "bulkhead features" is written
// from the same tables. A test walks the types and fails for a property without one.
package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	netv1 "bulkhead/proto/net/v1"
)

// ConfigName is the file of a bundle that holds the container's configuration
// (runtime-spec, bundle.md).
const ConfigName = "config.json"

// maxConfig bounds config.json, which has to fit in one message of the bus, of
// 1 MiB, together with the rest of a request. Docker's is about 20 KiB.
const maxConfig = 768 << 10

// Bundle is a bundle whose config.json was read, once, and found good.
type Bundle struct {
	Dir    string      // absolute
	Config []byte      // config.json for the guest: as read, but for what asks for nothing
	Spec   *specs.Spec // config.json, decoded
	Rootfs string      // absolute, symbolic links resolved
	Binds  []Bind      // the mounts whose files are the host's, in order
	Joined []Joined    // the namespaces given by path

	Devices []Device // the block devices of the host that the container is given
}

// Options are what the command line adds to the question whether a bundle can be run.
type Options struct {
	SystemdCgroup bool // linux.cgroupsPath is "slice:prefix:name"
	SELinux       bool // the host's configuration allows labels
}

// Load reads and checks the bundle in dir.
func Load(dir string, opts Options) (*Bundle, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding bundle %q: %w", dir, err)
	}
	text, err := readConfig(dir)
	if err != nil {
		return nil, err
	}
	spec, err := decode(text)
	if err != nil {
		return nil, err
	}
	b := &Bundle{Dir: dir, Spec: spec}
	if err := errors.Join(Check(spec), checkCgroupsPath(spec, opts), checkSELinux(spec, opts)); err != nil {
		return nil, oneLine(err)
	}
	if b.Config, err = forGuest(text, spec); err != nil {
		return nil, err
	}
	if b.Joined, err = joined(spec.Linux); err != nil {
		return nil, oneLine(err)
	}
	if b.Rootfs, err = rootfs(dir, spec.Root); err != nil {
		return nil, err
	}
	var nodes []DeviceBind
	if b.Binds, nodes, err = binds(dir, spec); err != nil {
		return nil, oneLine(err)
	}
	if b.Devices, err = devices(spec.Linux, nodes, b.Binds); err != nil {
		return nil, oneLine(err)
	}
	if r := spec.Linux.Resources; r != nil {
		if err := CheckBlockIO(r.BlockIO, b.Devices); err != nil {
			return nil, oneLine(err)
		}
	}
	return b, nil
}

// ReadHooks reads the hooks of a container that was created, from their JSON
// text. Nil means that there are none.
func ReadHooks(text string) (*specs.Hooks, error) {
	if text == "" {
		return nil, nil
	}
	var hooks *specs.Hooks
	if err := json.Unmarshal([]byte(text), &hooks); err != nil {
		return nil, fmt.Errorf("reading the container's hooks: %w", err)
	}
	if err := checkHooks(hooks); err != nil {
		return nil, oneLine(err)
	}
	return hooks, nil
}

// ReadProcess reads the process out of the configuration of a container that
// was created, the ground on which the argument form of exec builds.
func ReadProcess(config string) (*specs.Process, error) {
	spec, err := decode([]byte(config))
	if err != nil {
		return nil, err
	}
	if spec.Process == nil {
		return nil, errors.New("the container has no process to take the environment from: use --process")
	}
	return spec.Process, nil
}

// Check judges a decoded configuration without looking at the host's files.
func Check(spec *specs.Spec) error {
	return errors.Join(
		checkVersion(spec.Version),
		checkProperties(spec),
		checkRoot(spec.Root),
		checkLinux(spec),
		checkProcess(spec.Process),
		checkMounts(spec),
		checkHooks(spec.Hooks),
		checkAnnotations(spec.Annotations),
	)
}

func readConfig(dir string) ([]byte, error) {
	path := filepath.Join(dir, ConfigName)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		// runc's words; "no such file" would read as a missing program (docs of the callers).
		return nil, fmt.Errorf("JSON specification file %s not found", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxConfig)
	}
	return text, nil
}

// decode takes one JSON object. Unknown properties are ignored, as the
// runtime-spec demands (config.md, "Extensibility").
func decode(text []byte) (*specs.Spec, error) {
	if string(bytes.TrimSpace(text)) == "null" {
		return nil, fmt.Errorf("%s holds null, not a configuration", ConfigName)
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(text, spec); err != nil {
		return nil, fmt.Errorf("%s is not a configuration: %w", ConfigName, err)
	}
	return spec, nil
}

func checkRoot(root *specs.Root) error {
	if root == nil {
		return refuse("root", "a Linux container needs a root file system")
	}
	if root.Path == "" {
		return refuse("root.path", "it is empty")
	}
	return nil
}

// rootfs resolves root.path, which is relative to the bundle unless absolute
// (runtime-spec, config.md#root).
func rootfs(dir string, root *specs.Root) (string, error) {
	path := root.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("root file system %q cannot be used: %w", path, err)
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return "", fmt.Errorf("root file system %q cannot be used: %w", path, err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("root file system %q is a file, and must be a directory", path)
	}
	if resolved == "/" {
		return "", fmt.Errorf("root file system %q is the host's own root: give the container a root file system of its own", path)
	}
	return resolved, nil
}

func checkAnnotations(annotations map[string]string) error {
	if _, empty := annotations[""]; empty {
		return refuse("annotations", "a key is empty")
	}
	if _, err := netv1.PolicyOf(annotations); err != nil {
		return refuse("annotations", err.Error())
	}
	return nil
}

// refusal is the form of every refusal: the property by name, and why.
type refusal struct{ property, reason string }

func (r *refusal) Error() string { return fmt.Sprintf("%s: %s: %s", ConfigName, r.property, r.reason) }

func refuse(property, reason string) error { return &refusal{property, reason} }

// oneLine turns joined errors into one line: a message is one JSON string in
// the log and one line on stderr.
func oneLine(err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	return lines(joined.Unwrap())
}

// lines are several findings about one bundle, told together.
type lines []error

func (l lines) Unwrap() []error { return l }

func (l lines) Error() string {
	texts := make([]string, 0, len(l))
	for _, err := range l {
		texts = append(texts, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return strings.Join(texts, "; ")
}
