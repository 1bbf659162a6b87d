// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command fileprobe tells how the file system of a directory behaves where
// programs rely on it: databases, package managers, version control, editors. It
// runs inside a container and prints a line per check, "name: ok" or what is
// wrong; the end-to-end tests compare the lines with docs/limits.md.
//
// It imports nothing of ours. A check works in a directory of its own, so that
// one that fails does not disturb the next.
//
// usage: fileprobe DIRECTORY
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// check is one thing that programs rely on.
type check struct {
	name string
	run  func(dir string) error
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == contender {
		contend(os.Args[2], os.Args[3])
	}
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: fileprobe DIRECTORY")
		os.Exit(2)
	}
	var checks []check
	checks = append(checks, contents...)
	checks = append(checks, names...)
	checks = append(checks, attributes...)
	checks = append(checks, locks...)
	for _, c := range checks {
		fmt.Printf("%s: %s\n", c.name, outcome(c, os.Args[1]))
	}
}

// found says what a check found instead of what it wants, and the error that came
// with it, if one did.
func found(err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if err == nil {
		return errors.New(what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func outcome(c check, dir string) string {
	own := filepath.Join(dir, "probe-"+c.name)
	if err := os.Mkdir(own, 0o755); err != nil {
		return err.Error()
	}
	if err := c.run(own); err != nil {
		return err.Error()
	}
	if err := os.RemoveAll(own); err != nil {
		return "removing what the check made: " + err.Error()
	}
	return "ok"
}
