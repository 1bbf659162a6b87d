// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
)

// The users of the operator's listener, with one password.
const (
	operatorUser = "operator" // the host's account: services, state, events
	systemUser   = "system"   // the system account, for "nats server" commands
)

// ContextName is the nats CLI's context for this host.
const ContextName = "bulkhead"

// contextMark tells our context file from one that a person made.
const contextMark = "Bulkhead host bus; written by the daemon, removed when it stops"

// operatorFile is the credential below the run directory, in the form of a nats
// context.
const operatorFile = "operator.json"

type natsContext struct {
	Description string `json:"description"`
	URL         string `json:"url"`
	User        string `json:"user"`
	Password    string `json:"password"`
}

// newPassword makes 128 bits of it.
func newPassword() string { return rand.Text() }

// publishOperator writes the credential to the run directory and, where none of
// another origin stands, to the nats CLI's context. It gives the context's path,
// empty when it was not written.
func (s *Server) publishOperator() error {
	body, err := json.MarshalIndent(natsContext{Description: contextMark, URL: s.URL(), User: operatorUser, Password: s.ids.token}, "", "  ")
	if err != nil {
		return fmt.Errorf("write the operator's credential: %w", err)
	}
	body = append(body, '\n')
	if err := s.writeOwn(filepath.Join(s.opts.RunDir, operatorFile), body); err != nil {
		return err
	}
	dir, err := contextDir()
	if err != nil {
		s.log.Warn("no nats context written", "error", err)
		return nil
	}
	path := filepath.Join(dir, ContextName+".json")
	switch old, err := os.ReadFile(path); {
	case err == nil:
		var c natsContext
		if json.Unmarshal(old, &c) != nil || c.Description != contextMark {
			s.log.Warn("no nats context written: the file there was not made by this daemon; remove it, or use the credential in the run directory", "path", path)
			return nil
		}
	case !errors.Is(err, os.ErrNotExist):
		s.log.Warn("no nats context written", "error", err)
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.log.Warn("no nats context written", "error", err)
		return nil
	}
	if err := s.writeOwn(path, body); err != nil {
		s.log.Warn("no nats context written", "error", err)
		return nil
	}
	s.contextPath = path
	return nil
}

// writeOwn replaces a file at once, readable by its owner only, and lets Close
// remove it while it still holds what was written.
func (s *Server) writeOwn(path string, body []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // made 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(body)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	s.undo = append(s.undo, func() {
		if now, err := os.ReadFile(path); err == nil && string(now) == string(body) {
			_ = os.Remove(path) // a leftover opens nothing: its password died with the server
		}
	})
	return nil
}

// contextDir is where the nats CLI looks, also under systemd, which sets no HOME.
func contextDir() (string, error) {
	config := os.Getenv("XDG_CONFIG_HOME")
	if config == "" {
		home := os.Getenv("HOME")
		if home == "" {
			u, err := user.Current()
			if err != nil {
				return "", fmt.Errorf("find the home directory: %w", err)
			}
			home = u.HomeDir
		}
		config = filepath.Join(home, ".config")
	}
	return filepath.Join(config, "nats", "context"), nil
}
