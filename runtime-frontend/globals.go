// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v3"

	"bulkhead/bus/config"
)

// globals are the flags that stand before the command.
type globals struct {
	std           Streams
	startRelay    startRelay
	root          string
	log           string
	logFormat     string
	config        string
	debug         bool
	systemdCgroup bool
	version       bool

	rootless      rootless
	cgroupManager string
	criu          string
}

func (g *globals) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "root", Usage: "`DIR` that scopes container ids; nothing is written there", Value: defaultRoot(), Destination: &g.root},
		&cli.StringFlag{Name: "log", Usage: "append errors to this `FILE`", Destination: &g.log},
		&cli.StringFlag{Name: "log-format", Usage: "`FORMAT` of --log: text or json", Value: "text", Destination: &g.logFormat},
		&cli.StringFlag{Name: "config", Usage: "configuration `FILE` (default: $" + config.EnvPath + ", else " + config.DefaultPath + ")", Destination: &g.config},
		&cli.BoolFlag{Name: "debug", Usage: "log what is done, too", Destination: &g.debug},
		&cli.BoolFlag{Name: "systemd-cgroup", Usage: "read linux.cgroupsPath as \"slice:prefix:name\"", Destination: &g.systemdCgroup},
		&cli.GenericFlag{Name: "rootless", Usage: "true, false or auto: only false and auto can be had", Value: &g.rootless},
		&cli.StringFlag{Name: "cgroup-manager", Usage: "`MANAGER` of cgroups, as with crun: cgroupfs, systemd or disabled", Destination: &g.cgroupManager},
		&cli.StringFlag{Name: "criu", Usage: "ignored", Destination: &g.criu},
		&cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version", Destination: &g.version, Local: true},
	}
}

// check judges the global flags together, before any command acts.
func (g *globals) check() error {
	switch g.logFormat {
	case "text", "json":
	default:
		return fmt.Errorf("unknown --log-format %q: use text or json", g.logFormat)
	}
	switch g.cgroupManager {
	case "", "cgroupfs", "disabled":
	case "systemd":
		g.systemdCgroup = true
	default:
		return fmt.Errorf("unknown --cgroup-manager %q: use cgroupfs, systemd or disabled", g.cgroupManager)
	}
	if g.rootless == "true" {
		return fmt.Errorf("--rootless=true: virtual machines are run by a daemon of root, so there are no rootless containers")
	}
	if g.root == "" {
		return fmt.Errorf("--root is empty: give an absolute directory")
	}
	root, err := filepath.Abs(g.root)
	if err != nil {
		return fmt.Errorf("finding --root %q: %w", g.root, err)
	}
	g.root = root
	return nil
}

// defaultRoot follows runc: a user's own directory for everybody but root.
// Podman sets XDG_RUNTIME_DIR to nothing.
func defaultRoot() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		return filepath.Join(dir, "bulkhead")
	}
	return "/run/bulkhead"
}

// rootless is a flag that may stand without a value.
type rootless string

// Set implements flag.Value.
func (r *rootless) Set(value string) error {
	switch value = strings.ToLower(value); value {
	case "true", "false", "auto":
		*r = rootless(value)
		return nil
	}
	return fmt.Errorf("use true, false or auto")
}

// Get implements cli.Value.
func (r *rootless) Get() any { return string(*r) }

// String implements flag.Value.
func (r *rootless) String() string { return string(*r) }

// IsBoolFlag lets the flag stand alone.
func (r *rootless) IsBoolFlag() bool { return true }
