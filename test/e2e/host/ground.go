// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tokenPrefix begins the name of everything the tests make.
const tokenPrefix = "bhe2e-"

// Ground is the place where one run of the suite stands: a short directory below
// /run, since unix sockets bound the length of paths, one for bulky data, and a
// copy of the binaries and the guest. The copy keeps a rebuild from mixing
// versions within a run, and makes every process of ours known by what it runs.
type Ground struct {
	Token string // in the name of all that the suite makes
	Dir   string // /run/<token>: sockets, state, logs
	Data  string // /var/tmp/<token>: images and containers of engines
	Bin   string // the binaries under test
	Guest string // kernel and image of the guest
}

// NewGround makes a Ground of the build directory; of none, it holds no binaries.
func NewGround(build string) (_ *Ground, err error) {
	random := make([]byte, 3)
	if _, err := rand.Read(random); err != nil {
		return nil, err
	}
	g := &Ground{Token: tokenPrefix + hex.EncodeToString(random)}
	g.Dir, g.Data = filepath.Join("/run", g.Token), filepath.Join("/var/tmp", g.Token)
	g.Bin, g.Guest = filepath.Join(g.Data, "bin"), filepath.Join(g.Data, "guest")
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Remove())
		}
	}()
	for _, dir := range []string{g.Dir, g.Data, g.Bin, g.Guest} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make the ground of the tests: %w", err)
		}
	}
	if build == "" {
		return g, nil
	}
	binaries, err := filepath.Glob(filepath.Join(build, "bin", "bulkhead*"))
	if err != nil {
		return nil, err
	}
	if len(binaries) == 0 {
		return nil, fmt.Errorf("no binaries in %s: run \"make build guest\", or set BULKHEAD_BUILD", filepath.Join(build, "bin"))
	}
	for _, binary := range binaries {
		if err := copyFile(binary, filepath.Join(g.Bin, filepath.Base(binary)), 0o755); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"vmlinux", "image.ext4"} {
		if err := copyFile(filepath.Join(build, "guest", name), filepath.Join(g.Guest, name), 0o644); err != nil {
			return nil, fmt.Errorf("copy the guest (\"make guest\" makes it): %w", err)
		}
	}
	return g, nil
}

// Below is a ground within this one, with the same binaries and nothing else in
// common: its token is a path, and so is found by whoever looks for either.
func (g *Ground) Below(name string) (*Ground, error) {
	b := &Ground{
		Token: g.Token + "/" + name, Dir: filepath.Join(g.Dir, name), Data: filepath.Join(g.Data, name),
		Bin: g.Bin, Guest: g.Guest,
	}
	return b, errors.Join(os.Mkdir(b.Dir, 0o755), os.Mkdir(b.Data, 0o755))
}

// Remove takes the directories away.
func (g *Ground) Remove() error { return errors.Join(os.RemoveAll(g.Dir), os.RemoveAll(g.Data)) }

// KeepLogs saves the daemons' logs of a run that failed, and says where.
func (g *Ground) KeepLogs() error {
	logs, err := filepath.Glob(filepath.Join(g.Dir, "*", "*.log"))
	if err != nil || len(logs) == 0 {
		return err
	}
	dir := filepath.Join(os.TempDir(), g.Token+"-logs")
	for _, path := range logs {
		name := filepath.Join(dir, filepath.Base(filepath.Dir(path))+"-"+filepath.Base(path))
		if err := errors.Join(os.MkdirAll(dir, 0o755), copyFile(path, name, 0o644)); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, "note: the daemons' logs are kept in", dir)
	return nil
}

// KernelRelease is the release of the guest's kernel, read from its image.
func (g *Ground) KernelRelease() (string, error) {
	text, err := os.ReadFile(filepath.Join(g.Guest, "vmlinux"))
	if err != nil {
		return "", fmt.Errorf("read the guest kernel: %w", err)
	}
	// init/version.c: "Linux version RELEASE (builder) ...".
	_, rest, found := strings.Cut(string(text), "Linux version ")
	for found {
		release, _, _ := strings.Cut(rest, " ")
		if release != "" && release[0] >= '0' && release[0] <= '9' && len(release) < 64 {
			return release, nil
		}
		_, rest, found = strings.Cut(rest, "Linux version ")
	}
	return "", errors.New("no release in the guest kernel: is it compressed?")
}

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
