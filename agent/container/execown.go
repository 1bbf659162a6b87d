// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// stateFile is libcontainer's name for what it keeps of a container.
const stateFile = "state.json"

// withOwn gives an exec the umask and the OOM score of its own process. libcontainer takes both from the
// container's configuration (runc ignores an exec's), so the process is started through a copy of the container's state that
// says otherwise. done removes the copy; the container itself stays as it was.
func (c *Container) withOwn(lc *libcontainer.Container, p *specs.Process) (_ *libcontainer.Container, done func(), err error) {
	config := lc.Config()
	if same(p.User.Umask, config.Umask) && same(p.OOMScoreAdj, config.OomScoreAdj) {
		return lc, func() {}, nil
	}
	fail := func(err error) (*libcontainer.Container, func(), error) {
		return nil, nil, fmt.Errorf("preparing the umask and the OOM score of an exec: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(c.stateDir(), lc.ID(), stateFile))
	if err != nil {
		return fail(err)
	}
	var state libcontainer.State
	if err := json.Unmarshal(text, &state); err != nil {
		return fail(err)
	}
	if p.User.Umask != nil {
		state.Config.Umask = p.User.Umask
	}
	if p.OOMScoreAdj != nil {
		state.Config.OomScoreAdj = p.OOMScoreAdj
	}
	if text, err = json.Marshal(&state); err != nil {
		return fail(err)
	}
	root, err := os.MkdirTemp("", "exec-")
	if err != nil {
		return fail(err)
	}
	done = func() {
		if err := os.RemoveAll(root); err != nil {
			c.log.Warn("cannot remove the state of an exec", "error", err)
		}
	}
	dir := filepath.Join(root, lc.ID())
	if err = os.Mkdir(dir, 0o700); err == nil {
		err = os.WriteFile(filepath.Join(dir, stateFile), text, 0o600)
	}
	if err != nil {
		done()
		return fail(err)
	}
	own, err := libcontainer.Load(root, lc.ID())
	if err != nil {
		done()
		return fail(err)
	}
	return own, done, nil
}

// same says whether a process asks for nothing else than its container has.
func same[T comparable](asked, has *T) bool {
	return asked == nil || has != nil && *asked == *has
}
